# Everything is installed into .venv in this folder. PYTHON= names the base Python (3.11 or newer).
PYTHON ?= python3
CONFIG ?= config/local.yaml
PORT ?=

BIN := .venv/bin

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Without bytecode on disk, each worker compiles all tests, and each replica the application.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install install-test format lint types check test test-all chaos demo serve bench

help:
	@echo "make install  set up .venv"
	@echo "make demo     run a 4-member forecast; leaves a dataset, a map and a STAC item in var/demo"
	@echo "make serve    serve config/local.yaml on 127.0.0.1:8000; PORT=8001, CONFIG=config/gpu.yaml"
	@echo "make check    check the configuration files"
	@echo "make test     all tests but slow ones, those without Ray in parallel; ARGS=\"tests/serve_app -k check\" WORKERS=0"
	@echo "make test-all all tests"
	@echo "make chaos    kill processes, nodes and clusters under load; ARGS=\"--kills 50\""
	@echo "make bench    measure; ARGS=\"--base URL --against URL\" compares two servers"
	@echo "make format lint types"

# Stamps make repeated calls quick: pip runs only when the requirements have changed.
install: .venv/.installed
install-test: .venv/.installed-test

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv"
	$(PIP) -e .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv, including test requirements"
	$(PIP) -e '.[test]'
	@touch .venv/.installed $@

# Azurite, the emulator of Blob Storage. Without npm its tests are skipped with a message.
EMULATORS := tests/emulators
$(EMULATORS)/node_modules/.installed: $(EMULATORS)/package.json $(EMULATORS)/package-lock.json
	@if command -v npm >/dev/null; then \
		echo "installing Azurite into $(EMULATORS)/node_modules"; \
		npm ci --prefix $(EMULATORS) --silent --no-audit --no-fund && touch $@; \
	else echo "npm is not installed: tests with Azurite will be skipped"; fi

format: install-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-test
	$(BIN)/python -m mypy

check: install
	$(BIN)/python -m serve_app.check config/*.yaml config/kuberay/overlays/*/serve.yaml \
		config/azureml/model/serve.yaml

# One more than the processors of a small machine: many tests wait for other processes.
WORKERS ?= 3
# Otherwise Ray writes a token to the home folder and reports usage statistics.
PYTEST := RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest
# Tests with Ray follow in one process: clusters that start side by side on two cores take minutes.
# Exit status 5: ARGS select no test of that kind.
define run-tests
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not ray$(1)" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m "ray$(1)" $(ARGS) || [ $$? -eq 5 ]
endef

test: install-test $(EMULATORS)/node_modules/.installed
	$(call run-tests, and not slow)

test-all: install-test $(EMULATORS)/node_modules/.installed
	$(call run-tests)

# Needs root: mounts give each node its own disk.
chaos: install-test $(EMULATORS)/node_modules/.installed
	$(BIN)/python -m tests.chaos $(ARGS)

demo: install
	$(BIN)/python -m examples.demo

serve: install
	$(BIN)/python -m serve_app $(CONFIG) $(if $(PORT),--port $(PORT))

bench: install-test
	$(BIN)/python -m benchmarks $(ARGS)
