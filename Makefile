# Everything from a bare checkout: each target makes .venv, installs torch and the tools, and builds.
#   make test     lint, build (the CUDA code too where nvcc is installed; no GPU needed), all tests
#   make lint     ruff, clang-format, mypy
#   make suite    the tests without lint, as CI runs them under each Python and torch
#   make coverage the tests, and the share of the package's Python lines that they run
#   make stress   damaged files through every reader, 20,000 of each format; operations short of memory; processes
#                 that save into one folder, threads, forks; a part of it: N=1000 FORMATS="xmc npz memory"
#   make demo     wordnet: build the dataset, train, evaluate, predict in words, explain, attack, all under runs/demo/
#   make bench    benchmarks beside other forms, rows into benchmarks/results/*.csv; a part of them: ARGS="-k decode"
#   make bench-table   the tables, charts and figures of README and docs/, from those rows
#   make docs     the documentation, into site/: read it with `python3 -m http.server --directory site`
#   make build    just the editable install in .venv
#   make clean    removes .venv, build folders and caches
# Variables: PYTHON (python3), TORCH (a pip requirement in place of the default), ARGS (for pytest),
#   WORKERS (how many processes run the tests: a process for each core).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH_VERSION := 2.13.0
OLDEST_TORCH := 2.11.0
HEADERS := build/torch-$(OLDEST_TORCH) build/torch-newest

NATIVE := CMakeLists.txt setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.* tests/cuda_shim/*)
NVCC := $(shell command -v nvcc || ls $${CUDA_HOME:-/usr/local/cuda}/bin/nvcc 2>/dev/null)

.NOTPARALLEL:
.PHONY: build test lint suite coverage stress bench bench-table docs demo abi clean broken
build: $(VENV)/built

# Made anew where it was moved or its Python is gone: its scripts name the folder they were made in.
BROKEN := $(shell test ! -e $(VENV)/created || \
  { test -x $(BIN)/python && grep -qsF "$(CURDIR)/$(VENV)" $(BIN)/activate; } || echo broken)
$(VENV)/created: $(BROKEN)
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

# torch first and by itself: where there is no GPU, the CPU build (from wherever pip finds one, else from
# PyTorch's own index); the default wheel from PyPI would bring gigabytes of CUDA libraries.
$(VENV)/torch: $(VENV)/created
ifdef TORCH
	$(PIP) "$(TORCH)"
else ifneq ($(shell command -v nvidia-smi),)
	$(PIP) "torch==$(TORCH_VERSION)"
else
	$(PIP) "torch==$(TORCH_VERSION)+cpu" || \
	  $(PIP) "torch==$(TORCH_VERSION)" --index-url https://download.pytorch.org/whl/cpu
endif
	touch $@

$(VENV)/tools: $(VENV)/torch pyproject.toml
	$(PIP) "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=2.12"
	touch $@

INSTALL := $(PIP) --no-build-isolation --editable ".[dev,docs]"

$(VENV)/built: $(VENV)/tools $(NATIVE)
	$(INSTALL)
	touch $@

# The same with the CUDA operators, as CI compiles them. Marks the plain build as done, too.
$(VENV)/built-cuda: $(VENV)/tools $(NATIVE)
ifeq ($(NVCC),)
	@echo "no nvcc: the CUDA operators are not compiled here"
	MACH_SHIM=1 $(INSTALL)
else
	MACH_CUDA=1 MACH_SHIM=1 MACH_WERROR=1 $(INSTALL)
endif
	touch $(VENV)/built $@

lint: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc benchmarks tests -name '*.h' -o -name '*.cpp' -o -name '*.cu*')
	$(BIN)/mypy

test: $(VENV)/built-cuda lint suite

# A worker a core, each of one thread. A test that is about threads sets their number itself.
WORKERS ?= auto
suite: $(VENV)/built-cuda $(HEADERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

# Programs that tests start are not counted (pyproject.toml). A part of the tests: ARGS="tests/data".
coverage: $(VENV)/built-cuda $(HEADERS)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The headers of the oldest torch that will do and of the newest that pip finds, each out of its smallest wheel,
# for tests/test_build.py.
EXTRACT := import sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1]); \
  wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith("torch/include/torch/")])
build/torch-newest: REQUIREMENT := torch
build/torch-$(OLDEST_TORCH): REQUIREMENT := torch==$(OLDEST_TORCH)
$(HEADERS): | $(VENV)/created
	rm -rf build/download && mkdir -p build/download
	if $(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
	  --platform macosx_15_0_arm64 --python-version 3.12 --dest build/download "$(REQUIREMENT)" && \
	  $(BIN)/python -c '$(EXTRACT)' build/download/*.whl build/download; then \
	  mv build/download/torch $@; \
	else echo "$(REQUIREMENT) could not be fetched: nothing is compiled against its headers"; fi
	rm -rf build/download

# Each format against a naive reader of it, tests/stress/; a minute each. What differs is kept in build/stress/.
# Then operations at many limits of memory, some ten minutes.
N ?= 20000
stress: $(VENV)/built
	PYTHONPATH=tests $(BIN)/python -m stress.run --files $(N) $(FORMATS)
	PYTHONPATH=tests $(BIN)/python -m stress.writers
	PYTHONPATH=tests $(BIN)/python -m stress.threads
	PYTHONPATH=tests $(BIN)/python -m stress.deaths

# Beside other forms: each result goes into benchmarks/results/ as soon as it is there. What needs the real datasets
# skips without. Throughput alone: .venv/bin/pytest benchmarks --benchmark-only.
bench: $(VENV)/built
	$(BIN)/python -m pytest benchmarks --benchmark-skip $(ARGS)

bench-table: $(VENV)/built
	$(BIN)/python benchmarks/table.py
	$(BIN)/python docs/figures

# Nothing is fetched: neither by the build nor by the pages.
docs: $(VENV)/built
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# From nothing to predictions in words and why: the wordnet dataset, a model, its metrics, an explanation of one
# prediction, P@k clean and adversarial with its chart, all under runs/demo/.
demo: $(VENV)/built
	$(BIN)/mach-ext train --dataset wordnet --no-holdout --gradient-threshold 0.003 --choice rule --no-label-names --output runs/demo --overwrite $(ARGS)
	$(BIN)/mach-ext predict --model-path runs/demo --k 5 \
	  --text "a small dog kept as a pet" --text "a person who plays the violin" \
	  --text "move quickly on foot" --text "a disease caused by a virus"
	$(BIN)/mach-ext explain --model-path runs/demo --k 3 --html runs/demo/explanation.html \
	  --text "any of various large cats of Africa having a tawny coat and a shaggy mane"
	$(BIN)/mach-ext attack --model-path runs/demo --attack fgsm --eps 0.1 --sample 2000 --report runs/demo/attack.html

# One binary, several torch: this build's wheel under another release (gigabytes to download).
OTHER_TORCH ?= torch==2.14.1
abi: $(VENV)/built
	rm -rf build/wheel && $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w build/wheel .
	$(PYTHON) -m venv build/abi
	build/abi/bin/pip install --quiet "$(OTHER_TORCH)" build/wheel/*.whl
	cd build && abi/bin/python -c "import torch; print('torch', torch.__version__)" \
	  && abi/bin/python ../examples/train_loop.py

clean:
	rm -rf $(VENV) build dist site *.egg-info mach_ext/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks \
	  .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
