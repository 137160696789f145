# make demo    restore the photograph that ships with the repository, and show before and after
# make test    lint, types, imports and tests
# make lint    lint, types and imports alone
# make bench   time every op beside the reference
# make fuzz    read damaged pictures and checkpoints for MINUTES (5)
# make train-gpu  train the shipped weights for eight minutes on a GPU (configs/gpu.toml), with a Python that has torch
#                 for it: make train-gpu PYTHON=python3
# make wheel   wheels that need no compiler, in dist/: for WHEEL_PYTHONS (this Python), each tried in a fresh environment
# make docs    the site of documentation, in build/site
# make test-ecosystem  tests that need Ray or spandrel, in an environment of their own
# The others install what they need into $(VENV); Python 3.10 or newer and a C++ compiler are required.

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5
# The development environment pins torch exactly; the package itself accepts a range (pyproject.toml).
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/cuda/*/*)

.PHONY: demo test lint bench fuzz train-gpu wheel docs test-ecosystem clean

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

wheel: $(VENV)/.torch
	$(BIN)/python tools/wheel.py $(WHEEL_PYTHONS) --torch "$(TORCH)"

docs: $(VENV)/.for_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# spandrel asks for torchvision, which the tests replace where it is missing.
test-ecosystem: $(VENV)/.for_tests
	test -d $(VENV)-ecosystem || $(PYTHON) -m venv $(VENV)-ecosystem
	echo "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	    > "$$($(VENV)-ecosystem/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(VENV)-ecosystem/bin/python -m pip install --quiet "ray>=2.10"
	$(VENV)-ecosystem/bin/python -m pip install --quiet --no-deps "spandrel>=0.4" einops
	$(VENV)-ecosystem/bin/python -m pytest tests/app/test_ray.py tests/app/test_spandrel.py

clean:
	rm -rf $(VENV) $(VENV)-ecosystem build dist *.egg-info swintormer_kernels/_native*.so

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable .
	touch $@

# Not by way of .installed: every editable installation builds anew.
$(VENV)/.for_tests: $(VENV)/.torch $(SOURCES)
	$(PIP) --editable ".[test]"
	touch $(VENV)/.installed $@

$(VENV)/.for_docs: $(VENV)/.torch
	$(PIP) "mkdocs>=1.6,<2" "mkdocs-material>=9.5" "mkdocstrings[python]>=0.27" ruff numpy
	touch $@
