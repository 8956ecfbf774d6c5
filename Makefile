# Everything starts here; each target does its own set-up. ARGS goes to the program: make train ARGS="train.steps=5"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-long transformers4 llama-cpp chaos check reproduce docs docs-serve setup clean

train: setup ## the main job: s=16, then s=32, evaluation and report, on this machine
	@$(BIN)/python train.py $(ARGS)

test: check ## lint, types and every test that runs on CPU in minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-long: setup transformers4 ## the tests that take longer
	@$(BIN)/python -m pytest -m long $(ARGS)

transformers4: .transformers4/.installed ## transformers 4 beside ours, for the tests of what it makes of our exports

.transformers4/.installed: | setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .transformers4 transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2
	@touch $@

llama-cpp: .llama-cpp/.installed ## llama.cpp built from source into .llama-cpp/, for the tests of what it makes of our GGUFs

.llama-cpp/.installed: | setup
	@echo "building llama-cpp-python into .llama-cpp (some minutes, needs a C++ compiler)"
	@test -x .llama-cpp/bin/python || $(PYTHON) -m venv .llama-cpp
	@CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-2} CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" .llama-cpp/bin/python -m pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

chaos: setup ## kill runs at random, CHAOS_KILLS (200) times, and see that each ends as if nothing had happened
	@CHAOS_KILLS=$${CHAOS_KILLS:-200} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s --timeout 7200 -m "long or not long" tests/chaos $(ARGS)

check: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

reproduce: setup ## the paper's findings at small scale, about two hours on two cores: make reproduce BOOKS=FOLDER
	@$(BIN)/python -m yarn_train.reproduce $(if $(BOOKS),--books $(BOOKS)) $(ARGS)

docs: setup ## the documentation, into site/; site/index.html opens from the disk, nothing is fetched
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

docs-serve: setup ## the documentation on http://127.0.0.1:8000, made again at every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict $(ARGS)

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
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
