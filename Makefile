# `make demo` shows what cktf does; `make test` is the check before every commit, and `make test-all`
# adds the slow tests, as continuous integration does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo lint test test-slow test-all gpu format soak benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/cktf quickstart --out runs/quickstart

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One thread per test process: more would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

test-all: lint
	$(PYTEST)

# On a machine with a CUDA GPU: first the tests that need one, then all checks and measurements.
gpu: $(VENV)/.installed-dev
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/pytest -q -m gpu tests
	$(BIN)/python benchmarks/gpu.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Hours: 200 kills of each kind of run, 10,000 fuzzed inputs, an hour of training with each memory.
RELIABILITY := results/reliability
soak: $(VENV)/.installed-dev
	mkdir -p $(RELIABILITY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_resume.py --kills 200 --out $(RELIABILITY)/kills.json
	CKTF_FUZZ=10500 CKTF_FUZZ_COUNTS=$(RELIABILITY)/fuzz.json $(BIN)/pytest -q tests/test_fuzz.py
	$(BIN)/python tools/checkpoint_overhead.py
	$(BIN)/python tools/memory_soak.py --minutes 60
	$(BIN)/python tools/reliability_page.py

# DATA_DIR holds CIFAR-10, for the epochs.
DATA_DIR ?= data
benchmarks: $(VENV)/.installed-benchmarks
	$(BIN)/python benchmarks/contrast.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --precision float32 --sizes \
	    --pairs resnet32x4:resnet8x4 resnet56:resnet20
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/epoch.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/feeding.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/allocator.py
	$(BIN)/python benchmarks/page.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-benchmarks: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[benchmarks]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs
