# `make test` and `make demo` do all set-up themselves. Where: an active environment with DIALS, else VENV.
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK ?=
# with kernels as plain Python, where arrays are small
KERNEL_TESTS ?= tests/test_planes.py tests/test_statistics.py tests/test_simulation_parts.py tests/test_spots.py
BIN = $(shell .ci/make_env --where $(VENV))

.PHONY: help env test demo snase bench soak docs lint types coverage clean

help:
	@echo "make test   run the tests                  make test PYTEST_ARGS='-k grid -x'"
	@echo "                                           in this process only   make test PYTEST_ARGS='-n 0'"
	@echo "make demo   simulated images to a diffuse map, compared with the truth, in demo-output/"
	@echo "make snase  the images of a real crystal to a map   make snase DIALS_DIFFUSE_DATA=/path/to/data"
	@echo "make bench  run the benchmarks             make bench BENCH_ARGS='--whole'"
	@echo "make soak   try to break everything            make soak SOAK='--cases 100000 --kills 200'"
	@echo "make docs   build the documentation, in build/docs/"
	@echo "make types  check the types"
	@echo "make coverage   which lines the tests reach"
	@echo "make lint   check the style of the code"
	@echo "make env    only set up the environment"
	@echo "make clean  remove what the other targets left, except the environment"

env:
	@.ci/make_env $(VENV)

test: env
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(PYTEST_ARGS)

demo: env
	PATH="$(BIN):$$PATH" docs/demo.sh

snase: env
	PATH="$(BIN):$$PATH" docs/snase.sh

bench: env
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

soak: env
	$(BIN)/python benchmarks/soak/run.py $(SOAK)

docs: env
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs
	@echo "The documentation is in build/docs/index.html"

types: env
	$(BIN)/python -m mypy

# absolute: programs that tests start elsewhere would leave their data there
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage: env
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q -n auto --dist worksteal $(PYTEST_ARGS)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest -q -n 0 $(KERNEL_TESTS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

lint: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:
	rm -rf build dist *.egg-info .coverage* demo-output .hypothesis .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
