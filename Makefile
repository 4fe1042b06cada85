# Tidelog's commands. `make` alone lists them.
#
# The first `make run` or `make test` creates .venv and installs into it (that needs the network); later ones do
# nothing while pyproject.toml is unchanged, and work offline. No compiler is needed: every dependency has wheels.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1..200
RUNS ?= 25
JOBS ?= 2
SECONDS ?= 120
ARGS ?=
CLIENTS := build/clients/java/.built build/clients/go/.built build/clients/javascript/.built
STORES := build/stores/minio/.built build/stores/seaweedfs/.built
DEPLOY_TOOLS := build/deploy/helm/.built build/deploy/kubeconform/.built build/deploy/compose/.built build/deploy/debian/.built

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.installed ## Serve Kafka on localhost:9092, everything below ./data
	@exec $(BIN)/tidelog dev $(ARGS)

.PHONY: test
test: $(VENV)/.installed-dev clients stores deploy-tools ## Run all tests, JOBS=2 at a time (ARGS="-k wal" narrows them)
	$(BIN)/pytest -n $(JOBS) --no-loadscope-reorder $(ARGS)

.PHONY: clients
clients: $(CLIENTS) ## Build the Kafka clients in Java, Go and JavaScript that tests use, as far as their tools are here

.PHONY: stores
stores: $(STORES) ## Build the object stores MinIO and SeaweedFS, which tests use, from source, as far as Go is here

.PHONY: deploy-tools
deploy-tools: $(DEPLOY_TOOLS) ## Make what tests of deploy/ use: helm, kubeconform, a reader of compose files, a Debian root (as root), as far as their tools are here

.PHONY: deploy-check
deploy-check: $(VENV)/.installed-dev deploy-tools build/stores/minio/.built ## Check all of deploy/: image, compose, chart, dashboards, alerts
	$(BIN)/pytest tests/deploy $(ARGS)

.PHONY: minio
minio: $(VENV)/.installed-dev build/stores/minio/.built ## Serve S3 on localhost:9000 by MinIO, everything below ./data/minio, and tell how to run Tidelog on it
	@exec $(BIN)/python -m tests.stores minio $(ARGS)

.PHONY: seaweedfs
seaweedfs: $(VENV)/.installed-dev build/stores/seaweedfs/.built ## The same on localhost:8333 by SeaweedFS
	@exec $(BIN)/python -m tests.stores seaweedfs $(ARGS)

.PHONY: compat
compat: $(VENV)/.installed-dev clients ## Write docs/compatibility.md from a run of all clients (ARGS=apis: only its APIs)
	$(BIN)/python -m tests.interop.compat $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: docs
docs: $(VENV)/.installed ## Write docs/configuration.md, docs/metrics.md, dashboards and alert rules anew from what they are made of
	$(BIN)/python -m broker.config_reference > docs/configuration.md
	$(BIN)/python -m broker.exposition > docs/metrics.md
	$(BIN)/python -m deploy.generate

.PHONY: demo
demo: $(VENV)/.installed-dev ## Send Python's own standard library through the broker and read every byte back
	$(BIN)/python examples/demo.py $(ARGS)

.PHONY: sim
sim: $(VENV)/.installed-dev ## Simulate crashes and faults deterministically (SEEDS=1..500 or SEEDS=42)
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

.PHONY: crash
crash: $(VENV)/.installed-dev ## Kill a real broker under load, again and again (RUNS=25)
	$(BIN)/python -m tests.crash --runs $(RUNS) $(ARGS)

.PHONY: faults
faults: $(VENV)/.installed-dev clients stores ## Have processes and network of three brokers on MinIO fail under load (ARGS="--seconds 600 --seed 1")
	$(BIN)/python -m tests.faults $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-fuzz ## Feed what decoders read to a coverage-guided fuzzer (SECONDS=120 for all, ARGS="requests" for one)
	$(BIN)/python -m tests.fuzz run --seconds $(SECONDS) $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-dev ## Measure throughput and latency beside what the machine can do
	$(BIN)/python -m bench $(ARGS)

.PHONY: system-packages
system-packages: ## Install the Debian packages that some tests and benchmarks use (as root)
	@test "$$(id -u)" = 0 || { echo "Run it as root: sudo make system-packages"; exit 1; }
	@missing=; for package in kcat strace fio; do command -v $$package >/dev/null || missing="$$missing $$package"; done; \
	command -v javac >/dev/null || missing="$$missing default-jdk-headless"; \
	command -v mvn >/dev/null || missing="$$missing maven"; \
	command -v go >/dev/null || missing="$$missing golang-go"; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	command -v debootstrap >/dev/null || missing="$$missing debootstrap"; \
	if test -n "$$missing"; then \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	fi

.PHONY: clean
clean: ## Remove what was built, installed or cached here (./data, the broker's log, stays)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the virtual environment: one stamp for what the broker needs, one for what development adds

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make run PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Tidelog needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V)."; \
	    echo "Name a newer one: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot create virtual environments: on Debian and Ubuntu, apt install python3-venv; then try again."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# ---- clients in other languages, from what their own registries serve; what cannot be built here is skipped by the tests

INTEROP := tests/interop
BUILD_CLIENT := $(INTEROP)/build-client

build/clients/java/.built: $(BUILD_CLIENT) $(shell find $(INTEROP)/java -type f)
	@$(BUILD_CLIENT) java

build/clients/go/.built: $(BUILD_CLIENT) $(shell find $(INTEROP)/go -type f)
	@$(BUILD_CLIENT) go

build/clients/javascript/.built: $(BUILD_CLIENT) $(shell find $(INTEROP)/javascript -type f)
	@$(BUILD_CLIENT) javascript

# ---- object stores, from source by Go; what cannot be built here is skipped by the tests

BUILD_STORE := tests/stores/build-store

build/stores/minio/.built: $(BUILD_STORE)
	@$(BUILD_STORE) minio

build/stores/seaweedfs/.built: $(BUILD_STORE)
	@$(BUILD_STORE) seaweedfs

# ---- tools for tests of deploy/; what cannot be made here is skipped by the tests

DEPLOY_TESTS := tests/deploy
BUILD_TOOL := $(DEPLOY_TESTS)/build-tool

build/deploy/helm/.built: $(BUILD_TOOL)
	@$(BUILD_TOOL) helm

build/deploy/kubeconform/.built: $(BUILD_TOOL)
	@$(BUILD_TOOL) kubeconform

build/deploy/compose/.built: $(BUILD_TOOL) $(shell find $(DEPLOY_TESTS)/compose -type f)
	@$(BUILD_TOOL) compose

build/deploy/debian/.built: $(BUILD_TOOL)
	@$(BUILD_TOOL) debian

$(VENV)/.installed-fuzz: tests/fuzz/requirements.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r $<
	@touch $@
