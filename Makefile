# make demo    restore the photograph that ships with the repository, and show before and after
# make test    lint, types, imports and tests
# make lint    lint, types and imports alone
# make bench   time every op beside the reference
# make fuzz    read damaged pictures and checkpoints for MINUTES (5)
# make train-gpu  train the shipped weights for eight minutes on a GPU (configs/gpu.toml), with a Python that has torch
#                 for it: make train-gpu PYTHON=python3
# The others install what they need into $(VENV); Python 3.10 or newer and a C++ compiler are required.

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5
# The development environment pins torch exactly; the package itself accepts a range (pyproject.toml).
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/cuda/*/*)

.PHONY: demo test lint bench fuzz train-gpu clean

demo: $(VENV)/.installed
	$(BIN)/swintormer demo

# Two processes share the cores, so torch's threads must not spin while they wait.
test: lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.for_tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.for_tests
	$(BIN)/python -m pytest bench/

fuzz: $(VENV)/.for_tests
	$(BIN)/python -m bench.fuzz --minutes $(MINUTES) --cases 1000000

# Neither $(VENV), whose torch is for the CPU, nor the C++ extension is needed.
train-gpu:
	$(PYTHON) -m swintormer train configs/gpu.toml

clean:
	rm -rf $(VENV) build *.egg-info swintormer_kernels/_native*.so

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable .
	touch $@

$(VENV)/.for_tests: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	touch $@
