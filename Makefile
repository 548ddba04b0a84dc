# `make baseline` and `make test` need nothing but Python 3.11 or newer: they make .venv in this folder first.
PYTHON ?= python3
VENV := .venv/bin
INSTALLED := .venv/installed

.PHONY: baseline test lint clean

baseline: $(INSTALLED)  ## the baselines on the built-in synthetic sample: a table and the path of a page
	$(VENV)/python jobs/baseline.py

test: $(INSTALLED)  ## all tests; those on real data run where HAM_RAY_TEST_DATA names its folder
	$(VENV)/python -m pytest -m "not ray" -n 2 --dist loadfile
	$(VENV)/python -m pytest -m ray

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
