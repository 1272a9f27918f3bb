# Every target does its own set-up: the first one that runs makes .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test soak test-detectron2 check format docs clean
help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*##/\t/'

setup: .venv/ready ## make .venv with exact versions
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssldet needs Python 3.11 or newer; run: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable . --group dev --group docs
	@touch $@

demo: setup ## pretrain, fine-tune, compare and report on generated images (three to six minutes on two cores)
	$(BIN)/ssldet demo

test: setup ## run every test, those that measure time by themselves
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not timing"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m timing

soak: setup ## hours of training, kills and damaged files, with limits: make soak SOAK="all --hours 2 --kills 240"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(SOAK)

test-detectron2: ## run the tests that need detectron2: make test-detectron2 DETECTRON2_PYTHON=/path/to/python
	@test -n "$(DETECTRON2_PYTHON)" || { echo "name a Python that has detectron2: make $@ DETECTRON2_PYTHON=/path/to/python"; exit 1; }
	@$(DETECTRON2_PYTHON) -c 'import detectron2, ssldet, pytest, pytest_timeout, beartype' || { \
		echo "$(DETECTRON2_PYTHON) lacks that; install it there: pip install --editable . pytest pytest-timeout beartype"; exit 1; }
	OMP_NUM_THREADS=1 $(DETECTRON2_PYTHON) -m pytest tests/downstream/export/detectron2

check: setup ## lint, types and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff write
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup ## build the pages into docs/_build
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

clean: ## remove what the targets made, runs excepted
	rm -rf .venv dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
