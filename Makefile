# `make search` answers the question, `make test` runs the tests; both do all the set-up they need.
.DEFAULT_GOAL := help
.SHELLFLAGS := -eu -c
# Targets share one environment and one cargo lock; cargo and pip use all cores themselves.
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Any of these may be given: `make search SEARCH="--model llama-3.1-70b --slo-ms 30"`, `make test PYTEST="-k search"`.
SEARCH ?= --slo-ms 50 --target-tps 1e6
PYTEST ?=
VENV ?= .venv
CARGO ?= cargo
# Random cases of the Rust tests: the same in every run, so that a red build is red again; another seed looks elsewhere.
export PROPTEST_RNG_SEED ?= 1

IS_NEW_PYTHON := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell $(name) $(IS_NEW_PYTHON) >/dev/null 2>&1 && echo $(name))))

BIN := $(VENV)/bin
# Stamps live in the environment, so that removing it starts afresh; each names what its recipe installed.
ENVIRONMENT := $(VENV)/.environment
INSTALLED := $(VENV)/.installed
TEST_TOOLS := $(VENV)/.test-tools
LINT_TOOLS := $(VENV)/.lint-tools
PLUGIN_LIST := $(VENV)/.plugins

PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/tokenopt-*/pyproject.toml))
PACKAGE_FILES := pyproject.toml $(PLUGINS:%=%/pyproject.toml)
# Folders too: their time changes when a file goes.
RUST_SOURCES := Cargo.toml Cargo.lock $(wildcard rust/*/Cargo.toml) $(shell find rust/*/src -name '*.rs' -o -type d)

# An active environment elsewhere, or modules on a foreign path, must not take the place of $(VENV).
export VIRTUAL_ENV := $(abspath $(VENV))
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

COMMA := ,

# Where HOME is not the one rustup was installed for (containers, sudo), rustup lies beside its cargo folder.
RUSTUP_BESIDE := $(abspath $(dir $(shell command -v $(CARGO) 2>/dev/null))../../.rustup)
ifeq ($(shell $(CARGO) --version >/dev/null 2>&1 || test ! -d '$(RUSTUP_BESIDE)' || echo use),use)
export RUSTUP_HOME := $(RUSTUP_BESIDE)
SET_RUSTUP := export RUSTUP_HOME='$(RUSTUP_BESIDE)';
endif

.PHONY: help search test test-all lint fmt ci bench docs docs-check golden wheel dev clean check-tools force

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

search: $(INSTALLED) ## Set everything up and run the main job
	$(BIN)/tokenopt search $(SEARCH)

test: $(INSTALLED) $(TEST_TOOLS) ## Set everything up and run the Rust and Python tests
	$(CARGO) test --release --locked
	$(BIN)/python -m pytest $(PYTEST)
	@echo "make test: all Rust and Python tests passed"

test-all: $(INSTALLED) $(TEST_TOOLS) ## The tests, slow ones included
	$(CARGO) test --release --locked
	$(BIN)/python -m pytest -m "not bench" $(PYTEST)
	@echo "make test-all: all Rust and Python tests passed, slow ones included"

lint: $(INSTALLED) $(TEST_TOOLS) $(LINT_TOOLS) ## Format, lint, type and docs checks
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all --check; \
	else echo "Rust formatting not checked, rustfmt is missing: rustup component add rustfmt"; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then \
	set -x; $(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings; \
	else echo "Rust not linted, clippy is missing: rustup component add clippy"; fi
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/docs.py --check
	@echo "make lint: clean"

fmt: $(ENVIRONMENT) $(LINT_TOOLS) ## Format the code
	$(CARGO) fmt --all
	$(BIN)/ruff check --fix-only --quiet . || true
	$(BIN)/ruff format .

ci: lint test ## What CI runs

bench: $(INSTALLED) $(TEST_TOOLS) ## Measure speed and write the table of the README
	$(CARGO) bench --locked -p tokenopt-core
	$(BIN)/python -m pytest -m bench --benchmark-only --benchmark-disable-gc tests/benchmarks $(PYTEST)
	$(BIN)/python scripts/bench_report.py --core --write

docs: $(INSTALLED) ## Write the generated parts of README and docs
	$(BIN)/python scripts/docs.py

docs-check: $(INSTALLED) ## Check that the generated parts are up to date
	$(BIN)/python scripts/docs.py --check

golden: $(INSTALLED) $(TEST_TOOLS) ## Write the golden files of the tests again
	TOKENOPT_WRITE_GOLDEN=1 $(BIN)/python -m pytest tests -k golden || test $$? -eq 5 # 5: there are none

wheel: $(ENVIRONMENT) ## Build the wheels of tokenopt and its plugins into dist/
	$(BIN)/maturin build --release --locked --out dist
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist $(PLUGINS:%=./%)

dev: $(INSTALLED) $(TEST_TOOLS) $(LINT_TOOLS) ## Install everything a developer needs

clean: ## Remove what was built
	rm -rf $(VENV) target dist

# One line for a missing tool: what to install. `$(error)` stops before any recipe of this run.
fails = $(shell $(SET_RUSTUP) { $(1); } >/dev/null 2>&1 || echo fails)
check-tools:
	$(if $(PYTHON),,$(error Python 3.11 or newer is missing: install python3 (Debian: apt-get install python3 python3-venv) or name one with PYTHON=...))
	$(if $(call fails,$(PYTHON) $(IS_NEW_PYTHON)),$(error PYTHON=$(PYTHON) is not Python 3.11 or newer: install one, or name another with PYTHON=...))
	$(if $(call fails,command -v $(CARGO)),$(error The Rust toolchain (cargo) is missing: install it with rustup, https://rustup.rs))
	$(if $(call fails,$(CARGO) --version && rustc --version),$(error cargo does not run, no Rust toolchain is chosen: run `rustup default stable`))
	$(if $(call fails,printf '%s\n' $(RUST_NEEDED) $(RUST_PRESENT) | sort -CV),$(error Rust $(RUST_PRESENT) is too old, $(RUST_NEEDED) or newer is needed: run `rustup update stable`))
	$(if $(call fails,command -v cc),$(error A C linker (cc) is missing: install gcc or clang (Debian: apt-get install build-essential)))
	@:

RUST_NEEDED = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
RUST_PRESENT = $(word 2,$(shell $(SET_RUSTUP) rustc --version 2>/dev/null))

$(ENVIRONMENT): | check-tools
	$(if $(call fails,$(PYTHON) -c 'import ensurepip$(COMMA) venv'),$(error Python's venv module is missing: install it (Debian: apt-get install python3-venv)))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" "setuptools>=77" "maturin>=1.9.4,<2"
	@$(BIN)/python --version > $@

# Rewritten only when a plugin comes or goes, so that the set that is installed is the set that is there.
$(PLUGIN_LIST): force | $(ENVIRONMENT)
	@echo "$(PLUGINS)" | cmp -s - $@ || { \
	for plugin in $$(cat $@ 2>/dev/null || true); do \
	case " $(PLUGINS) " in *" $$plugin "*) ;; *) $(BIN)/python -m pip uninstall --quiet --yes $${plugin##*/};; esac; done; \
	echo "$(PLUGINS)" > $@; }

# Editable, so that changes in Python and data files need no new install; changes in Rust build again.
$(INSTALLED): $(RUST_SOURCES) $(PACKAGE_FILES) $(PLUGIN_LIST) | $(ENVIRONMENT)
	$(BIN)/maturin develop --release --locked --quiet
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps $(PLUGINS:%=--editable ./%)
	@touch $@

$(TEST_TOOLS): pyproject.toml | $(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group test
	@touch $@

$(LINT_TOOLS): pyproject.toml | $(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group lint
	@touch $@
