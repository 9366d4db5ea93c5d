# Every target does its own set-up: a virtual environment in .venv with pinned versions (constraints.txt).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench bench-storage bench-collect bench-seeds clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "potstill needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,train,profile,dev]'
	@touch $(READY)

demo: $(READY) ## the whole story with a real teacher, in demo/ (QUICK=1: smaller)
	@$(BIN)/python examples/demo/demo.py $(if $(QUICK),--quick)

test: $(READY) ## all tests
	@$(BIN)/pytest

check: $(READY) ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## write docs/commands/ from the commands' own --help
	@$(BIN)/python docs/commands.py

bench: bench-storage bench-collect bench-seeds ## measure everything

bench-storage: $(READY) ## the table: size, speed, SIGKILLs
	@$(BIN)/python -m benchmarks.storage_figures
	@$(BIN)/python -m benchmarks.storage_kills

bench-collect: $(READY) ## the whole path of a collection beside a plain client
	@$(BIN)/python -m benchmarks.collect

bench-seeds: $(READY) ## soft against hard labels on the table that `make demo` left, three seeds (prints)
	@$(BIN)/python -m benchmarks.seeds

clean: ## remove the virtual environment, caches and what the demo made
	rm -rf .venv build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
