# Every target sets up what it needs by itself, in .venv; Python >= 3.11 is needed.
#
#   train    one run: `make train EXPERIMENT=cifar10 ARGS="--seed 1"`
#   test     format, lint, types, doctests and tests, with constraints.txt's versions
#   wheel    build and check dist/, and use the wheel alone in an empty virtual
#            environment
#   docs     build the site, with warnings as errors
#   newest   a selection of the tests, with the newest JAX and Flax (.venv-newest)
#   soak     kill a run of two processes KILLS times, and check that nothing is lost
#   check    test, wheel, docs and newest
#   format   mend what can be mended
#   clean    remove all that was made
#
# On Python 3.11 constraints.txt pins the oldest JAX, Flax, Optax and Orbax that
# pyproject.toml allows, so the ordinary run is that of the oldest; on newer Pythons it
# pins the JAX and Flax that were the newest when it was written.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
# JAX's newest versions need a newer Python than 3.11: the first of these that runs, also
# one of pyenv that is not on the PATH. With 3.11 pip installs the newest for 3.11.
PYENV_ROOT ?= $(HOME)/.pyenv
pyenv = $(wildcard $(PYENV_ROOT)/versions/$(1).*/bin/python)
NEWEST_PYTHON ?= $(shell for python in python3.13 $(call pyenv,3.13) \
  python3.12 $(call pyenv,3.12) $(PYTHON); do \
  $$python -c '' 2>/dev/null && echo $$python && break; done)
# The operation, the modules, a network, and a run of the trainer with its checkpoints.
NEWEST_FILES := \
  $(wildcard tests/shiftjax/test_shift*.py tests/shiftjax/test_layers*.py) \
  tests/shiftjax/models/test_resnet.py tests/train/test_checkpointing.py \
  $(wildcard tests/train/test_loop*.py) tests/train/test_evaluate_run.py
NEWEST_TESTS := every_lowering_has_the_same_gradient or pmap or shard_map or \
  forward_derivative or module_equals_numpy or nnx or evaluation_equals_numpy or \
  remat_gives_the_same_gradients or bit_for_bit or restored_on_one or \
  outcome_of_a_run or record_of_a_run or recorded
EXPERIMENT ?= digits
KILLS ?= 20
ARGS ?=
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
# Follows a command that installs packages.
OR_SAY = || { echo "make: $@ failed; it installs packages, from the network or from\
  PIP_INDEX_URL" >&2; exit 1; }

.PHONY: train test lint types unit wheel docs newest soak check format clean

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

wheel: $(VENV)/.build
	rm -rf dist
	@$(BIN)/python -m build --outdir dist $(OR_SAY)
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/package/check_files.py dist/*
	$(BIN)/python tests/package/check_wheel.py dist/*.whl

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going docs docs/_build/html

newest: $(NEWEST)/bin/python
	@echo "installing the newest versions into $(NEWEST), of $$($(NEWEST)/bin/python -V)"
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade \
	  --upgrade-strategy eager --editable ".[test]" $(OR_SAY)
	$(NEWEST)/bin/python -c \
	  'import flax, jax; print("jax", jax.__version__, "flax", flax.__version__)'
	$(NEWEST)/bin/python -m pytest -k "$(NEWEST_TESTS)" $(NEWEST_FILES)

soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --kills $(KILLS)

# One after the other, also under --jobs.
check:
	$(MAKE) test
	$(MAKE) wheel
	$(MAKE) docs
	$(MAKE) newest

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(NEWEST) .pytest_cache .ruff_cache build dist docs/_build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)

$(NEWEST)/bin/python:
	$(NEWEST_PYTHON) -m venv $(NEWEST)

$(VENV)/.build: $(BIN)/python Makefile
	@$(BIN)/python -m pip install --quiet build twine $(OR_SAY)
	@touch $@

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	@$(INSTALL) ".[train]" $(OR_SAY)
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	@$(INSTALL) ".[docs]" $(OR_SAY)
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (once)"
	@$(INSTALL) ".[dev]" $(OR_SAY)
	@touch $@
