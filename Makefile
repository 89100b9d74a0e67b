# Two commands do everything on a machine with Python >= 3.10, a C++ compiler and make:
#   make demo    the whole road on a generated data set        make test    the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= demo
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
# The constraints are the tested versions; nuscenes-devkit in [test] holds numpy below 2 where it can be installed.
# cityscapesscripts comes alone: it would bring the obsolete `typing` package.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test soak lint install sanitize wheel-check prerequisites clean

demo: $(STAMP)
	$(BIN)/maskray demo --out $(DEMO_OUT)

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(STAMP)
	$(BIN)/python -m pytest -m "soak" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

# The operators' tests and 10,000 random geometries on a build of its own that checks every access and every shift (GCC).
SANITIZE := build/sanitize
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)
sanitize: $(STAMP)
	MASKRAY_SANITIZE=1 MASKRAY_CUDA=0 $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZE) --build-temp $(SANITIZE)/temp
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest tests/model/ops -m "not gpu" -o "pythonpath=$(SANITIZE) ." $(PYTEST_ARGS)

# One wheel, tested under the oldest torch it serves and under the newest.
wheel-check: $(STAMP)
	PYTHON=$(PYTHON) .ci/wheel

prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "maskray needs Python >= 3.10, found no '$(PYTHON)': install it, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v=sys.version_info; sys.exit(0 if v >= (3, 10) else f"maskray needs Python >= 3.10, found {v[0]}.{v[1]}: run make PYTHON=/path/to/python3.10 or newer")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "maskray needs Python's venv module, which '$(PYTHON)' lacks: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; d = sysconfig.get_path("include"); sys.exit(0 if os.path.exists(os.path.join(d, "Python.h")) else f"maskray needs the Python headers, found none in {d}: install them (Debian: apt install python3-dev)")'
	@command -v $${CXX:-c++} >/dev/null || { echo "maskray needs a C++17 compiler, found no '$${CXX:-c++}': install one (Debian: apt install g++), or set CXX" >&2; exit 1; }

$(STAMP): $(SOURCES) | prerequisites
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt "setuptools>=77" wheel torch torchvision
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test]"
	$(PIP) install --quiet --constraint constraints.txt --no-deps cityscapesscripts
	touch $(STAMP)

clean:
	rm -rf build dist *.egg-info _maskray_ops*.so $(STAMP)
