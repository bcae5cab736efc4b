# syntax=docker/dockerfile:1.7
#
# The server with torch for CPUs or for NVIDIA GPUs, and the client's command:
#   docker build --build-arg TORCH=cpu  --tag scoring-service:0.1.0-cpu .
#   docker build --build-arg TORCH=cuda --tag scoring-service:0.1.0-cuda .
# The CUDA libraries come with torch, the driver from the node: both variants have the same base.
ARG TORCH=cpu

# Raised together with its digest, which is that of the index for all architectures.
ARG PYTHON_IMAGE=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY scoring_service scoring_service
COPY clients clients
RUN ["python", "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", "/wheels", "."]

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS installed
RUN ["python", "-m", "venv", "/opt/venv"]
WORKDIR /src
COPY constraints.txt ./
COPY tools/install_torch.sh tools/
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# torch has a layer of its own, which a change of our code leaves alone.
ARG TORCH
RUN PIP_NO_CACHE_DIR=1 TORCH="${TORCH}" tools/install_torch.sh /opt/venv/bin/python
COPY --from=wheel /wheels /wheels
# As in the Makefile: torch's pin has done its work, and a build for CPUs is called 2.13.0+cpu.
RUN sed '/^torch==/d' constraints.txt >/tmp/constraints.txt \
 && /opt/venv/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "$(echo /wheels/*.whl)[server,otel]" \
 && /opt/venv/bin/python -m pip check

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS runtime
# A compiler is part of the server: kernels for the CPU's own instructions (c++) and Triton's launchers (cc).
# Its version is the base's, which has a digest.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 scoring \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin scoring \
 && install --directory --owner 10001 --group 10001 /models /var/cache/scoring-service
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/var/cache/scoring-service \
    TRITON_CACHE_DIR=/var/cache/scoring-service/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/scoring-service/inductor \
    HF_HOME=/models/huggingface \
    HF_MODULES_CACHE=/var/cache/scoring-service/modules \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SCORING_HOST=0.0.0.0 \
    SCORING_HEALTH_PORT=50052
COPY --from=installed /opt/venv /opt/venv
# Numbers, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
# 50051 gRPC, 50052 health (plain), 9464 metrics (where --metrics-port says so)
EXPOSE 50051 50052 9464
# Ready, not merely alive; Kubernetes has probes of its own. Loading counts as starting for half an hour.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=4 CMD ["scoring-service", "health"]
ENTRYPOINT ["scoring-service"]
# The packaged tiny model. Without TLS and tokens the server says what it wants instead: see docs/kubernetes.md.
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="scoring-service" \
      org.opencontainers.image.description="Scores token sequences under Hugging Face causal LMs, over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
