# Every target does its own set-up: a virtual environment in .venv with pinned versions (constraints.txt).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench bench-storage bench-collect bench-train bench-seeds bench-distil nightly clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "potstill needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,train,profile,dev]'
	@touch $(READY)

demo: $(READY) ## the whole story with a real teacher, in demo/ (QUICK=1: smaller)
	@$(BIN)/python examples/demo/demo.py $(if $(QUICK),--quick)

test: $(READY) ## all tests, in two processes
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY) ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## write docs/commands/ from the commands' own --help
	@$(BIN)/python docs/commands.py

bench: bench-storage bench-collect bench-train bench-seeds bench-distil ## measure everything

bench-storage: $(READY) ## the table: size, speed
	@$(BIN)/python -m benchmarks.storage_figures

bench-collect: $(READY) ## the whole path of a collection beside a plain client
	@$(BIN)/python -m benchmarks.collect

bench-seeds: $(READY) ## soft against hard labels on the table that `make demo` left, three seeds (prints)
	@$(BIN)/python -m benchmarks.seeds

bench-train: $(READY) ## the stream and the loss head beside others, and beside the limit
	@$(BIN)/python -m benchmarks.train

bench-distil: $(READY) ## what each loss is worth: Gemma 3 270M on real text, three seeds (within an hour)
	@$(BIN)/python -m benchmarks.distil

nightly: $(READY) ## slow proofs: SIGKILLs by the hundred, the true clock, planted faults
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embeddings]'
	@$(BIN)/python -m benchmarks.storage_kills
	@$(BIN)/python -m benchmarks.collect_kills
	@$(BIN)/python -m benchmarks.collect_rate
	@$(BIN)/python -m benchmarks.collect_resume
	@$(BIN)/python -m benchmarks.train_kills
	@$(BIN)/python -m benchmarks.profile_faults

clean: ## remove the virtual environment, caches and what the demo made
	rm -rf .venv build demo bench *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
