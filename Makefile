# Everything runs from a fresh clone: each target first makes what it needs in $(VENV).
# Versions are those of constraints.txt, always.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?= --seconds 300
OUT ?= out/gpu

BIN := $(VENV)/bin
RUN := $(BIN)/python
PIP := $(RUN) -m pip -qq --disable-pip-version-check install -c constraints.txt

# What a rebuild depends on. Python sources are not here: the installation is editable.
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# CMake's folder is kept between builds, so that only what changed is compiled again.
export SUBLIMATE_BUILD_DIR ?= $(CURDIR)/build/native

.PHONY: help demo test threads address fuzz lint format bench docs gpu budget triton-budget build clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' |
	  while IFS=$$'\t' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=$(PYTHON)  VENV=$(VENV)  JOBS=$(JOBS)  PYTEST_ARGS=  DEMO_ARGS=  BENCH_ARGS=  OUT=$(OUT)'

demo: $(VENV)/.sublimate  ## every family on real data; tables and an HTML report
	@$(RUN) -m sublimate demo $(DEMO_ARGS)

test: $(VENV)/.sublimate  ## the whole test suite on JOBS processes, and which lanes ran
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

threads: $(VENV)/.sublimate  ## the CPU kernels under ThreadSanitizer (builds them once more: minutes)
	@SUBLIMATE_TEST_THREADS=1 $(RUN) -m pytest tests/sanitizers/test_threads.py

address: $(VENV)/.sublimate  ## CPU kernels without a CUDA twin under AddressSanitizer (minutes)
	@SUBLIMATE_TEST_ADDRESS=1 $(RUN) -m pytest tests/sanitizers/test_native.py

fuzz: $(VENV)/.sublimate  ## random arguments to every public function under AddressSanitizer
	@$(RUN) tests/reliability/sanitized.py $(FUZZ_ARGS)

lint: $(VENV)/.lint  ## ruff, mypy, clang-format
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(RUN) -m mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.lint  ## rewrite sources as lint wants them
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.sublimate  ## the benchmarks of this machine, into bench/results
	@$(RUN) -m sublimate bench $(BENCH_ARGS)

docs: $(VENV)/.sublimate  ## the site, into out/site
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

gpu:  ## build for the PYTHON at hand without network, check and measure on its GPU, into OUT
	@PYTHON='$(PYTHON)' .ci/gpu '$(OUT)'

budget: $(VENV)/.sublimate  ## rewrite csrc/cuda_budget.json: registers of the CUDA kernels (nvcc)
	@$(RUN) tests/helpers/cuda_budget.py

triton-budget: $(VENV)/.sublimate  ## compile what tests/kronecker_attention/triton_budget.csv lacks, and estimate
	@PYTHONPATH=tests:. $(RUN) -m helpers.triton_budget kronecker_attention
	@PYTHONPATH=tests:. $(RUN) -m bench.kronecker_attention.roofline

build: $(VENV)/.sublimate  ## the environment and the package, nothing else

clean:  ## remove the environment and everything built
	@rm -rf '$(VENV)' build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf python/*.egg-info python/sublimate/_C*.so

$(VENV)/.tools: constraints.txt
	@if [ ! -x '$(RUN)' ]; then
	  '$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
	    { echo 'sublimate needs Python 3.10 or newer; pass PYTHON=...' >&2; exit 1; }
	  echo 'environment: $(VENV)'
	  '$(PYTHON)' -m venv '$(VENV)'
	fi
	$(PIP) setuptools wheel pybind11 cmake ninja
	touch '$@'

# The build requirements are installed already, with pinned versions: no isolation.
$(VENV)/.sublimate: $(VENV)/.tools pyproject.toml $(NATIVE)
	@echo 'build: torch and test packages (first time: minutes), then the kernels'
	$(PIP) torch
	$(PIP) --no-build-isolation -e '.[triton,demo,bench,test]'
	$(RUN) -c "from sublimate._native import CPU, CUDA
	for part in (CPU, CUDA): print(part.module + ':', part.reason() or 'built')"
	touch '$@'

# mypy reads torch's types, so lint needs the installed package too.
$(VENV)/.lint: $(VENV)/.sublimate
	@$(PIP) ruff mypy clang-format
	touch '$@'
