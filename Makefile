# Every target makes its own set-up: a virtual environment in .venv from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export PYTHONSAFEPATH := 1

.PHONY: demo test lint parity bench clean setup

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

# The peers' packages need much of their own: their environment sees ours and adds theirs.
.venv-parity/.ready: $(STAMP) tests/parity/requirements.txt
	$(PYTHON) -m venv .venv-parity
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$(.venv-parity/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -r tests/parity/requirements.txt
	touch .venv-parity/.ready

parity: .venv-parity/.ready
	.venv-parity/bin/python -m pytest -m parity tests/parity

bench: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/tiny.py

clean:
	rm -rf .venv .venv-parity build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-lake
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
