# The commands of the project. `make` alone lists them.
# Needed: make, Python >= 3.11 and the package registry that pip is set up for.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
SOURCES := omnimuse tools tests examples

# Plain python3 if it is new enough, else a newer one by name. `make PYTHON=/path/to/python demo` overrides it.
SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(SUITABLE)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.PHONY: help demo serve install test test-all test-vllm test-machines static check format lock models lines features compat gpu gpu-tests gpu-wheels clean

help:
	@echo "make demo     install into .venv and draw demo.png"
	@echo "make serve    serve the demo model, with a page to draw in the browser"
	@echo "make test     run the test suite; tests that are crossed with every family take turns by commit"
	@echo "make test-all run all of it"
	@echo "make test-vllm what is written by vLLM itself: OMNIMUSE_VLLM_PYTHON names the Python that has it"
	@echo "make test-machines  the computing part of it on machines that this one can pretend to be"
	@echo "make check    format, lint, types, architecture and unit tests"
	@echo "make format   let ruff lay the code out"
	@echo "make lock     what a server installs, to the byte: requirements.lock and a bill of materials"
	@echo "make models   write docs/models.md"
	@echo "make lines    write how large the families are into docs/add-a-model.md"
	@echo "make features write docs/features.md, of what the tests say that they show"
	@echo "make gpu      on a machine with one: its tests, and every figure of docs/gpu.md, in eight minutes"
	@echo "make gpu-wheels  what that machine must be brought, if it reaches no network"
	@echo "make clean    remove .venv and what the tools left behind"

demo: install
	$(BIN)/omnimuse generate "a red circle on a blue background" -o demo.png --overwrite

# `make serve ARGS="--port 9000"` gives options.
serve: install
	$(BIN)/omnimuse serve $(ARGS)

install: $(VENV)/.installed

# Three tests at a time, for two cores: some wait for servers and ranks. Threads that wait for each other sleep, so that
# they leave the cores to others. Hundreds of processes begin: what Python compiles for one of them the next ones find.
test: $(VENV)/.installed-test
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

# Those that take turns (tests/turns.py), too.
test-all: ARGS += --all
test-all: test

# Where vLLM is installed, in an environment of its own (docs/deploy.md); elsewhere a stand-in is asked in its place.
test-vllm:
	@test -n "$$OMNIMUSE_VLLM_PYTHON" || { echo "OMNIMUSE_VLLM_PYTHON names no Python that has vLLM: install it into an \
	environment of its own (docs/deploy.md), and say OMNIMUSE_VLLM_PYTHON=/there/bin/python make test-vllm" >&2; exit 1; }
	@$(MAKE) --no-print-directory $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/dist/test_writers.py tests/dist/test_written_for_people.py $(ARGS)

# Forced dtypes, one and two threads, older instruction sets, busy neighbours: hours. ONLY=NAME runs one of them, TURN=3 as
# much as `make test` on a commit that has the third turn, PART=2/4 the second of four parts, in each of which
# every machine runs something.
test-machines: $(VENV)/.installed-test
	$(BIN)/python -m tools.machines $(if $(ONLY),--only $(ONLY)) $(if $(TURN),--turn $(TURN)) $(if $(PART),--part $(PART))

# What takes seconds and runs no test: layout, lint, types.
static: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -n 2

check: static
	$(BIN)/python -m pytest tests/test_architecture.py tests/unit

format: $(VENV)/.installed-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# For the Python of .venv and this system; pip is asked, and nothing is installed.
lock: $(VENV)/.installed
	$(BIN)/python -m tools.lock

# docs/models.md
models: $(VENV)/.installed
	$(BIN)/python -m tools.models_page

# The table in docs/add-a-model.md
lines: $(VENV)/.installed
	$(BIN)/python -m tools.family_lines

# docs/features.md
features: $(VENV)/.installed-test
	$(BIN)/python -m tools.features_page

# docs/compat.md, below its mark
compat: $(VENV)/.installed
	$(BIN)/python -m tools.compat_page

# On a machine with a GPU and a CUDA build of torch, which need not reach any network: python3 there is used as it is,
# with what `make gpu-wheels` has put into wheels/ beforehand. At most eight minutes, whatever fails on the way; called
# again it goes on with what is not measured. Writes docs/gpu.json and docs/gpu.md, without a GPU those in build/ (where
# .venv has what is needed: `make gpu GPU_PYTHON=.venv/bin/python`).
GPU_PYTHON ?= python3
gpu:
	@$(GPU_PYTHON) -c "import torch" || { echo "$(GPU_PYTHON) has no torch: name a Python that has, GPU_PYTHON=..."; exit 1; }
	test ! -d wheels || $(GPU_PYTHON) -m pip install -q --no-index --no-deps --upgrade --target build/site wheels/*.whl
	export PYTHONPATH=build/site:.; timeout 320 $(GPU_PYTHON) -W ignore -m benchmarks.gpu --seconds 300; figures=$$?; \
	$(MAKE) --no-print-directory gpu-tests && exit $$figures

# They end in time, too, and then say how many have run. What is compiled would take minutes more: `pytest tests/gpu`.
GPU_SECONDS ?= 120
gpu-tests:
	export PYTHONPATH=build/site:. OMP_NUM_THREADS=2; \
	timeout --foreground -s INT -k 20 $(GPU_SECONDS) $(GPU_PYTHON) -m pytest tests/gpu tests/unit/offload/test_layerwise.py -m gpu -k "not compiled" -p no:benchmark -n 8 --dist worksteal

# What a machine with torch for CUDA and its usual company (numpy, pytest, pillow ...) still lacks, into wheels/.
# GPU_VERSION is the Python there.
GPU_VERSION ?= 3.12
gpu-wheels: $(BIN)/python
	$(BIN)/python -m tools.gpu_wheels --python $(GPU_VERSION) -o wheels

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "omnimuse needs Python 3.11 or newer, and none of python3, python3.11 ... \
	python3.14 is. Install one, or name it: make PYTHON=/path/to/python3.12 demo" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUITABLE)' || { echo "PYTHON=$(PYTHON) does not run or is older than 3.11;" \
	"omnimuse needs Python 3.11 or newer" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# torch goes first and alone, at its pinned version: a package that asks for any torch then takes no other build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing omnimuse into $(VENV) (the first time takes some minutes)"
	$(PIP) torch
	$(PIP) -e ".[serve,video]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e ".[test]"
	@touch $@

# It has all that the others have: in a new clone pip is asked for this alone.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e ".[dev]"
	@touch $(VENV)/.installed $(VENV)/.installed-test $@
