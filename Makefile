# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG := configs/quickstart.yaml
RUN := runs/quickstart
# What `make chaos` has done, trial by trial; what has passed is not repeated.
FAULTS := runs/chaos.jsonl
# What the site shows, and what its pages link to.
PAGES := README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE Makefile \
	docs configs benchmarks scripts llm_train tests
# Two cores are shared by all ranks of a test, and by nothing else.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup train test test-dist chaos test-slow test-gpu test-floor test-pythons elastic rehearse bench bench-gpu check fix \
	configs docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("llm_train needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

train: $(STAMP) ## train on the Python standard library: the quickstart
	$(BIN)/llm-train prepare -c $(CONFIG)
	$(BIN)/llm-train fit -c $(CONFIG) --resume auto
	@echo && echo "sample" && $(BIN)/llm-train generate $(RUN) --prompt 'def ' --tokens 120
	@echo && $(BIN)/llm-train report $(RUN)

test: $(STAMP) ## the default test suite
	$(TEST_ENV) $(BIN)/python -m pytest

test-dist: $(STAMP) ## only the tests with several processes
	$(TEST_ENV) $(BIN)/python -m pytest -m 'distributed and not gpu and not faults'

chaos: $(STAMP) ## the matrix of faults; SHARD=1 to 8 for an eighth, TRIAL=kill-ddp-17 for one of it
	$(TEST_ENV) SHARD=$(SHARD) RESULTS=$(FAULTS) $(BIN)/python -m pytest -m 'chaos or faults' \
		$(if $(TRIAL),-k '[$(TRIAL)]',-p benchmarks.record_tests)

elastic: $(STAMP) ## a checkpoint of every strategy into every other
	$(TEST_ENV) $(BIN)/python -m benchmarks.elastic --out runs/elastic

test-slow: $(STAMP) ## tests that take minutes: compilation, the whole corpus
	$(TEST_ENV) $(BIN)/python -m pytest -m 'slow and not gpu and not faults'

test-gpu: $(STAMP) ## tests for one CUDA device, several at a time
	$(BIN)/python -m pytest -m gpu -n 8

test-floor: ## the default suite on the oldest torch that is supported (gigabytes to download)
	scripts/floor.sh

rehearse: $(STAMP) ## a grid of runs on one CUDA device, real or simulated
	$(BIN)/python scripts/rehearse.py --jobs 4

test-pythons: ## install, import and train on each further Python of this machine
	scripts/interpreters.sh

bench: $(STAMP) ## ratios and counts on a CPU; NANOGPT=DIR where it cannot be cloned
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.cpu $(if $(NANOGPT),--nanogpt $(NANOGPT))

bench-gpu: $(STAMP) ## the four commands that test and measure on one CUDA device
	for part in 1 2 3 4; do PYTHON=$(BIN)/python scripts/gpu_measure.sh $$part; done

check: $(STAMP) ## format, lint, types, imports, YAML, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/codespell

fix: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

configs: $(STAMP) ## every shipped configuration parses and builds
	$(TEST_ENV) $(BIN)/python -m pytest tests/test_configs.py

docs: $(STAMP) ## write docs/configuration.md from the code, and build the site in build/site
	$(BIN)/python scripts/configuration_reference.py
	rm -rf build/pages && mkdir -p build/pages
	ln -s $(addprefix $(CURDIR)/,$(PAGES)) build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build # --quiet would count no warnings

clean: ## remove what the targets made
	rm -rf $(VENV) $(VENV)-* data runs build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
