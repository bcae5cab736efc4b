"""What the server can be told, in one place. Flag over environment over file over default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scoring_service.types import PAGE_TOKENS

ENV_PREFIX = "SCORING_"
"""`--max-model-len` is `SCORING_MAX_MODEL_LEN` in the environment, `max_model_len` in a file."""

PREFERRED_TOKENS_PER_CALL = 65_536
"""What clients are advised unless configured, and at most by `scoring-service plan`."""

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings of `scoring-service serve`."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 50051
    """Port to listen on; 0 = a free one."""

    tls_certificate: Path | None = None
    """PEM file with the server's certificate chain; followed when it is rotated."""

    tls_key: Path | None = None
    """PEM file with its key."""

    tls_client_ca: Path | None = None
    """PEM file of the authorities whose certificates clients must show (mutual TLS)."""

    auth_tokens: Path | None = None
    """File with a line `NAME SCOPE[,SCOPE] TOKEN` a client; scopes are score and admin."""

    allow_insecure: bool = False
    """Listen on an address that others reach without TLS and without asking who calls."""

    allow_admin: bool = False
    """Offer AdminService also on a public address that asks nobody who calls."""

    admin_names: tuple[str, ...] = ()
    """Names of client certificates that may call AdminService, where there are no tokens."""

    weights_root: tuple[Path, ...] = ()
    """Folders that an admin may load weights from, links followed. Default: none."""

    weights_hub: tuple[str, ...] = ()
    """Hub repositories that an admin may load weights from. Default: none."""

    await_weights: bool = False
    """Take no calls until an admin pushed weights or had them loaded: for a policy in training,
    whose first weights a server that is started again must not answer from."""

    weights_stream_timeout: float = 60.0
    """Seconds of silence after which a stream of weights is aborted."""

    health_port: int | None = None
    """Another port, plain, that answers health alone: for probes that know no TLS; 0 = free."""

    max_concurrent_streams: int = 256
    """Calls at once on one connection."""

    max_concurrent_calls: int = 4096
    """Calls at once on all connections."""

    max_connection_age: float | None = None
    """Seconds after which a connection is asked to go, once its calls have ended. Default: none."""

    keepalive_seconds: float = 30.0
    """Silence after which a client is asked whether it is still there. One that does not answer
    within as long again (20 s at most) has hung up."""

    served_model_name: str | None = None
    """Name that requests use for the model. Default: the folder's, file's or Hub name."""

    revision: str | None = None
    """Branch, tag or commit of a Hub model."""

    dtype: DType = "auto"
    """Element type of the model's body; auto = as stored."""

    residual_dtype: Literal["auto", "float32"] = "auto"
    """Element type of the residual stream, which every layer of the body adds to. auto = the
    body's; float32 = as training in mixed precision has it: under a bfloat16 body less than half
    of the distance from float32, and on a CPU as fast."""

    head_dtype: DType = "float32"
    """Element type of the product that makes logits; auto = the body's."""

    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto = a GPU where there is one."""

    max_model_len: int | None = None
    """Longest sequence, in tokens. Default: the model's positions."""

    max_batch_tokens: int | None = None
    """Most tokens of one forward pass, though a chunk is never cut. On the plain path a sequence
    is one pass, so this bounds sequences too. Default: 1,024 on a CPU, 8,192 on a GPU; no bound of
    its own on the plain path."""

    chunk_size: int | None = None
    """Tokens of a chunk: sequences are computed in chunks that end at multiples of it, and bits
    depend on it alone, never on max_batch_tokens. A multiple of 16. Default: 64 on a CPU, 256 on
    a GPU."""

    tokens_beside_samples: int | None = None
    """Most tokens of scoring and prompts that join a step in which few samples are drawn: the more
    they are, the faster is scoring and the later come the samples' tokens. Many samples are joined
    by as many as they are, and steps are whole while samples wait for other prompts of their own
    call; where chunks can be cut, fewer tokens join that attend to many others. Default: 28 on a
    CPU, with which a step takes less than twice as long as one that draws alone, and 2,048 on a
    GPU, which is not measured. Where a probe finds that chunks cannot be cut, as on GPUs, a chunk
    is the least."""

    memory_utilization: float | None = None
    """Share of the memory left beside the weights that pages of keys and values may take, with what
    the largest step takes. Default: 0.25 on a CPU, 0.9 on a GPU."""

    path: Literal["auto", "plain"] = "auto"
    """auto = many sequences a forward pass where a probe finds the model fit for it; plain = one
    after another through transformers' own forward."""

    cpu_kernels: Literal["auto", "off"] = "auto"
    """On a CPU: auto = C++ kernels, compiled once a machine if it has a compiler; off = torch's
    operators, slower and equal but for the order of sums."""

    cuda_graphs: Literal["auto", "off"] = "auto"
    """On a GPU: auto = steps that only go on with samples are recorded as CUDA graphs and replayed,
    where a trial at load finds that they can be; off = each of their kernels is launched anew."""

    max_request_bytes: int = 64 << 20
    """Largest request message."""

    max_queue_tokens: int = 4 << 20
    """Tokens of calls that wait or are computed; beyond, calls are refused with a time to retry."""

    max_queue_reply_bytes: int = 16 << 30
    """Bytes of the answers of admitted calls, as predicted; beyond, the same."""

    max_priority: int = 100
    """Largest context.priority that a call may have. Calls of a larger one go before the turns of
    all callers: lower it to 0 where these do not trust one another."""

    reader_timeout: float = 300.0
    """Seconds for which a caller may leave results unread before its call is ended."""

    preferred_tokens_per_call: int = PREFERRED_TOKENS_PER_CALL
    """What GetModelInfo advises clients to put into one call."""

    max_k: int | None = None
    """Largest K and number of candidates. Default: the vocabulary."""

    weight_version: int = 0
    """Number that answers report as the version of the weights."""

    trust_remote_code: bool = False
    """Run the model's own Python code from the Hub or its folder."""

    threads: int | None = None
    """CPU threads of a worker. Default: the processors that the process may use, within the quota
    of its container, divided among the workers; torch's choice for one worker without a quota."""

    num_workers: int | None = None
    """Worker processes, each with the whole model. Default: one a GPU; one on a CPU."""

    heartbeat_timeout: float = 30.0
    """Seconds of silence after which a worker hangs: it is killed and started again."""

    step_timeout: float = 600.0
    """Seconds in one forward pass after which it does so, too."""

    drain_seconds: float = 30.0
    """Longest wait for running calls after SIGTERM."""

    self_audit_rate: float = 0.0
    """Share of scored calls of which one completion is computed again, alone, and compared."""

    self_audit_threshold: float | None = None
    """Difference of a log-prob in nats above which the self-audit logs an error and an alert is
    given. Default: 0.001 where the same bits are promised (deterministic), else 0.01 in float32
    and 1 in half precision, where other company changes sums; neither is measured on a GPU."""

    metrics_port: int | None = None
    """Port that answers GET /metrics for Prometheus; 0 = a free one. Default: none."""

    metrics_host: str | None = None
    """Address of that port, which is plain and asks nobody who they are. Default: that of host."""

    usage_tag: str | None = None
    """Tag of requests by whose values (the first 64) usage is counted, beside identities."""

    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go over gRPC, such as http://localhost:4317; needs
    scoring-service[otel]. Default: none are made."""

    traces_per_second: float = 10.0
    """Traces that begin here, at most; of a caller's own trace it decides itself."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is logged."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """How messages look; auto = console on a terminal, else JSON."""


_INT32_MAX = (1 << 31) - 1
_INT64_MAX = (1 << 63) - 1

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "health_port": (0, 65_535),
    "self_audit_rate": (0, 1),
    "self_audit_threshold": (0, math.inf),
    "metrics_port": (0, 65_535),
    "max_concurrent_streams": (1, _INT32_MAX),
    "max_concurrent_calls": (1, _INT32_MAX),
    "max_connection_age": (1, _INT32_MAX // 1000),  # gRPC counts milliseconds
    "keepalive_seconds": (1, 86_400),
    "max_model_len": (1, _INT32_MAX),
    "max_batch_tokens": (1, _INT32_MAX),
    "tokens_beside_samples": (8, _INT32_MAX),
    "chunk_size": (16, _INT32_MAX),
    "memory_utilization": (0.01, 1.0),
    "max_request_bytes": (1, _INT32_MAX),
    "max_queue_tokens": (1, _INT64_MAX),
    "preferred_tokens_per_call": (1, _INT64_MAX),
    "max_k": (1, _INT32_MAX),
    "max_priority": (0, 100),
    "weight_version": (-_INT64_MAX, _INT64_MAX),
    "threads": (1, _INT32_MAX),
    "drain_seconds": (0, math.inf),
    "traces_per_second": (0, math.inf),
    "num_workers": (1, 1024),
    "heartbeat_timeout": (3, math.inf),
    "step_timeout": (1, math.inf),
    "reader_timeout": (1, math.inf),
    "weights_stream_timeout": (0.1, math.inf),
    "max_queue_reply_bytes": (1, _INT64_MAX),
}
"""Least and largest value of the settings that have bounds; unset is always allowed."""


def check_ranges(config: ServeConfig) -> None:
    """Refuses numbers that no server can run with.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """
    for name, (least, largest) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= largest:
            bounds = f"at least {least}" if largest == math.inf else f"from {least} to {largest}"
            raise ValueError(f"{name} must be {bounds}, not {value}")
    if config.chunk_size is not None and config.chunk_size % PAGE_TOKENS:
        # Else seams fall inside pages, and a sequence takes more of them than its length says.
        message = f"must be a multiple of {PAGE_TOKENS}, not {config.chunk_size}"
        raise ValueError(f"chunk_size {message}")
