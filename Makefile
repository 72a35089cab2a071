# `make train` and `make test` set up .venv by themselves; they need Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXPERIMENT ?= digits
ARGS ?=
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: train test lint types unit docs format clean

train: $(VENV)/.train
	$(BIN)/python -m train $(EXPERIMENT) $(ARGS)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses logical $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going docs docs/_build/html

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist docs/_build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	$(INSTALL) ".[train]"
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	$(INSTALL) ".[docs]"
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	$(INSTALL) ".[dev]"
	@touch $@
