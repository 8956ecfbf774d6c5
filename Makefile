# Everything starts here; each target does its own set-up. ARGS goes to the program: make train ARGS="train.steps=5"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-long check setup clean

train: setup ## the main job: s=16, then s=32, evaluation and report, on this machine
	@$(BIN)/python train.py $(ARGS)

test: check ## lint, types and every test that runs on CPU in minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-long: setup ## the tests that take longer
	@$(BIN)/python -m pytest -m long $(ARGS)

check: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

setup: $(VENV)/.installed ## .venv with the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python >= 3.11 is needed, {sys.executable} is {v.major}.{v.minor}; set PYTHON=python3.11" if v < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: its pin must be chosen before anything else asks for a looser one
	@echo "installing into $(VENV) (first time only)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove the environment and caches; outputs/ and data/cache/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
