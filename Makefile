# Everything runs in .venv, built from the hashed lock when it is missing or older than the lock.
PYTHON ?= python3.11
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
LIGHT := tests/unit tests/property tests/contract

.PHONY: demo test check unit lock clean

demo: .venv/ready
	$(BIN)/raymlops demo

# What needs no cluster first, on all cores; then one session whose tests share a Ray, a Spark and a Serve.
test: .venv/ready
	$(BIN)/python -m pytest -n logical --dist worksteal $(LIGHT)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(LIGHT)) tests

unit: .venv/ready
	$(BIN)/python -m pytest -n logical --dist worksteal tests/unit

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit/test_import.py

.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Needs uv. The lock names no index, so it works behind any mirror.
lock:
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 \
		--extra dev --no-header pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache
