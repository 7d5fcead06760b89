# `make verify` and `make test` do everything on a machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# The small matrix products of this project lose time to many threads; two workers with one thread each fill two cores.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: verify test lint bench docs redteam mutate clean

verify: .venv/ready
	$(BIN)/python -m verification.theorem410 --depth 4

# Tests of one file share what they compute, as one claim's run.  `make test COVERAGE=--cov` reports the branches that no test takes, in half as
# much time again.
test: .venv/ready
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist=loadfile $(COVERAGE)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks

redteam: .venv/ready
	LINCONV_REDTEAM=10000 $(TEST_ENV) $(BIN)/python -m pytest -n 2 -q tests/test_true_claims.py

# 100 mutants of each part; `make mutate MUTATE="--parts cost --all"` for more.
mutate: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutation]'
	$(TEST_ENV) $(BIN)/python -m benchmarks.mutation $(MUTATE)

docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(TEST_ENV) $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "build/docs/index.html"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "linconv needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

clean:
	rm -rf .venv build dist figures .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
