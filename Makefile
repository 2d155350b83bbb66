# Every target makes its own set-up: a virtual environment in .venv from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export PYTHONSAFEPATH := 1

.PHONY: demo test lint bench clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/scopelake demo demo-lake

test: $(STAMP)
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/tiny.py

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-lake
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
