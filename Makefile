# Everything is set up by the first command that needs it; `make setup` runs again only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes find bytecode, whatever the shell says: without it, the imports of a command take 9 s instead of 4.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test pytest lint types docs notebooks study bench gpu pyro-tests clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, train a VAE on the embedded digits under two ELBO estimators, evaluate, draw"
	@echo "make test    set up, lint, type-check, build the docs, run the tests, doctests and examples"
	@echo "make study   the longer studies: MNIST, marked 'slow' (PYROAE_DATA names the folder of the data)"
	@echo "make notebooks   run the tutorials in docs/tutorials and store their outputs: about 15 minutes"
	@echo "make bench   speed beside Pyro's SVI, hand-written PyTorch, NumPyro and pythae: about an hour of a quiet machine;"
	@echo "             AGAINST=REF times that commit too, and fails if something got slower"
	@echo "make gpu     on a CUDA device: the numbers of a CPU, and speed; eight to ten minutes"
	@echo "make pyro-tests PYRO=FOLDER   Pyro's own tests with pyroae's objectives; FOLDER is 'tests' of a checkout of Pyro"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "pyroae needs Python 3.12 or newer; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/pyroae demo --out runs/demo --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

docs: setup
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --fail-on-warning --quiet --fresh-env --doctree-dir site/.doctrees docs site

notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python docs/_notebooks.py --write

pytest: setup
	COVERAGE_CORE=sysmon OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not slow' --cov=pyroae --cov-report=
	@echo "lines of pyroae that the tests run, %: $$($(BIN)/coverage report --format=total)"

# Side by side: some tests wait for other processes, and types and docs use one core each.
test: setup
	$(MAKE) --no-print-directory -j4 lint types docs pytest

study: setup
	$(BIN)/pytest -m slow -s
	PYROAE_TRIES=500 $(BIN)/pytest tests/test_fuzz.py
	PYROAE_PROGRAMS=5000 $(BIN)/pytest tests/test_any_program.py

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[bench]'
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed all --check $(if $(AGAINST),--against $(AGAINST))

gpu: setup
	$(BIN)/python -m benchmarks.gpu

pyro-tests: setup
	$(BIN)/python -m benchmarks.pyro_tests $(PYRO)

clean:
	rm -rf $(VENV) site jupyter_execute runs .mypy_cache .pytest_cache .ruff_cache
