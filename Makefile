# `make search` answers the question, `make test` runs the tests; both do all the set-up they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV ?= .venv
BIN := $(VENV)/bin
# Stamps live in the environment, so that removing it starts afresh.
INSTALLED := $(VENV)/.installed
TEST_TOOLS := $(VENV)/.test-tools
LINT_TOOLS := $(VENV)/.lint-tools

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
PACKAGE_FILES := pyproject.toml $(wildcard plugins/tokenopt-*/pyproject.toml)
PLUGINS := $(wildcard plugins/tokenopt-*)

.PHONY: help search test test-all lint fmt ci bench docs docs-check golden wheel dev clean check-tools

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

search: $(INSTALLED) ## Set everything up and run the main job
	$(BIN)/tokenopt search --slo-ms 50 --target-tps 1e6

test: $(INSTALLED) $(TEST_TOOLS) ## Set everything up and run the Rust and Python tests
	cargo test --release --locked
	$(BIN)/python -m pytest

test-all: $(INSTALLED) $(TEST_TOOLS) ## The tests, slow ones included
	cargo test --release --locked
	$(BIN)/python -m pytest -m "not bench"

bench: $(INSTALLED) $(TEST_TOOLS) ## Measure speed: criterion, pytest-benchmark, the table of the README
	cargo bench --locked -p tokenopt-core
	$(BIN)/python -m pytest -m bench --benchmark-only --benchmark-disable-gc tests/benchmarks
	$(BIN)/python scripts/speed.py

lint: $(INSTALLED) $(TEST_TOOLS) $(LINT_TOOLS) ## Format and lint checks
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; \
	else echo "rustfmt is not installed, Rust formatting not checked: rustup component add rustfmt"; fi
	@if cargo clippy --version >/dev/null 2>&1; then cargo clippy --release --locked --workspace --all-targets -- -D warnings; \
	else echo "clippy is not installed, Rust not linted: rustup component add clippy"; fi
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/docs.py --check

fmt: $(LINT_TOOLS) ## Format the code
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet . || true
	$(BIN)/ruff format .

ci: lint test ## What CI runs

docs: $(INSTALLED) ## Write the generated parts of README and docs
	$(BIN)/python scripts/docs.py

docs-check: $(INSTALLED) ## Check that the generated parts are up to date
	$(BIN)/python scripts/docs.py --check

golden: $(INSTALLED) $(TEST_TOOLS) ## Write the golden files of the tests again
	TOKENOPT_WRITE_GOLDEN=1 $(BIN)/python -m pytest tests -k golden

wheel: $(BIN)/python ## Build the wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

dev: $(INSTALLED) $(TEST_TOOLS) $(LINT_TOOLS) ## Install everything a developer needs

clean: ## Remove what was built
	rm -rf $(VENV) target dist

check-tools:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install python3 (with venv) from python.org or your package manager"; exit 1; }
	@command -v cargo >/dev/null || { echo "a Rust toolchain is needed: install it with rustup (rustup.rs)"; exit 1; }
	@command -v cc >/dev/null || { echo "a C linker is needed: install gcc or clang (Debian: apt-get install build-essential)"; exit 1; }

$(BIN)/python: | check-tools
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=77" "maturin>=1.9.4,<2"

# Editable, so that Python changes need no new install; Rust changes build again.
$(INSTALLED): $(RUST_SOURCES) $(PACKAGE_FILES) | $(BIN)/python
	$(BIN)/maturin develop --release --locked --quiet
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps $(foreach plugin,$(PLUGINS),--editable ./$(plugin))
	@touch $@

$(TEST_TOOLS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

$(LINT_TOOLS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group lint
	@touch $@
