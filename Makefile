# demo  test  test-long  s3  check  bench  clean. Each makes .venv and installs into it when pyproject or constraints are newer.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread a process for numeric libraries: the tests run several processes side by side.
TEST_ENV := OMP_NUM_THREADS=1
WORKERS ?= 2
# A file stays on one worker, and files go out in the order of the folders: end-to-end tests first, doctests last. (By
# itself xdist hands out files with many tests first, and the few long ones last: one worker would wait for the other.)
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long s3 check bench clean install

install: $(STAMP)

# torch goes first and alone: resolved together with the rest, several GB of CUDA packages would come along.
$(STAMP): pyproject.toml constraints.txt tests/requirements-s3-server.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[dev,s3,ray]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/requirements-s3-server.txt
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sdflow demo

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD) -m "not long"

# everything, with the full forms of the S3, crash and Ray suites: hours, not minutes
test-long: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(SPREAD) --timeout 3600

# an S3 server on this machine, without containers; Ctrl-C ends it
s3: $(STAMP)
	$(BIN)/python -m tests.s3_server

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --warnings

bench: $(STAMP)
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
