# `make baseline` and `make test` need nothing but Python 3.11 or newer: they make .venv in this folder first.
PYTHON ?= python3
VENV := .venv/bin
INSTALLED := .venv/installed

.PHONY: baseline test test-all lint clean

baseline: $(INSTALLED)  ## the baselines on the built-in synthetic sample: a table and the path of a page
	$(VENV)/python jobs/baseline.py

# -n 2: two processes, each a host of its own with its own Ray where Linux namespaces can be made (tests/apart.py)
test: $(INSTALLED)  ## the tests that need no data, in minutes
	$(VENV)/python -m pytest -n 2 -m "not long and not real"

test-all: test  ## those, then the long ones and, where HAM_RAY_TEST_DATA and HAM_RAY_TEST_WEIGHTS are set, those on real inputs
	$(VENV)/python -m pytest -m "long or real"

lint: $(INSTALLED)
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ham_ray needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
