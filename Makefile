# Every target makes its own set-up: a virtual environment in .venv from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export PYTHONSAFEPATH := 1

.PHONY: demo test lint parity oldest soak bench bench-ingest bench-compact bench-dense bench-styles bench-memory bench-stream \
	bench-corpus bench-scaling bench-examples bench-encode bench-gpu bench-gpu-ingest bench-feeding bench-statistics bench-plan bench-committer bench-query bench-query-peers bench-peers bench-search bench-compare bench-inspect clean setup
.SECONDARY:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt kernels/_native.c kernels/_tile.h kernels/_screen.c store/_native.c store/_statistics.c store/_bands.h store/_sort.h store/_pages.c
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

# Environments that see ours and put other packages before it: a peer's, or older versions.
.venv-%/.ready: tests/environments/%.txt $(STAMP)
	$(PYTHON) -m venv .venv-$*
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$(.venv-$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Those that exports are for, without what they need beyond what reads them (vllm, TransformerLens).
.venv-parity/.peers: .venv-parity/.ready
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		eai-delphi==0.1.3 sae-dashboard==0.8.0 circuit-tracer==0.5.0
	touch $@

parity: .venv-parity/.peers
	.venv-parity/bin/python -m pytest -m parity tests/parity

oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -m "not slow" tests/ingest

# Ingests killed at random moments, 100 rounds; the tests run a few.
soak: $(STAMP)
	SCOPELAKE_SOAK_ROUNDS=100 $(BIN)/pytest tests/ingest/test_soak.py

bench: bench-encode bench-ingest

bench-ingest: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/tiny.py

bench-compact: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/compaction.py

bench-dense: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/dense.py

bench-styles: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/parquet_styles.py

bench-memory: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/memory.py

bench-encode: .venv-parity/.ready
	PYTHONPATH=benchmarks .venv-parity/bin/python benchmarks/encode.py

bench-gpu: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/gpu.py

bench-feeding: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/feeding.py

bench-statistics: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/feature_statistics.py

bench-gpu-ingest: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/gpu_ingest.py

bench-stream: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/stream.py

bench-scaling: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/scaling.py

bench-corpus: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/corpus.py

bench-inspect: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/inspection.py

bench-query: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/query.py

# delphi without what it needs beyond its cache and loader (vllm, CUDA's packages).
.venv-query-peers/.delphi: .venv-query-peers/.ready
	.venv-query-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps eai-delphi==0.1.3
	touch $@

bench-query-peers: .venv-query-peers/.delphi
	PYTHONPATH=benchmarks .venv-query-peers/bin/python benchmarks/query_peers.py

bench-peers: .venv-parity/.peers
	PYTHONPATH=benchmarks .venv-parity/bin/python benchmarks/peers.py
	PYTHONPATH=benchmarks .venv-parity/bin/python benchmarks/peers_table.py

bench-search: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/search.py

bench-compare: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/compare.py

bench-examples: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/examples.py

bench-plan: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/plan.py

bench-committer: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/committer.py

clean:
	rm -rf .venv .venv-parity .venv-oldest .venv-query-peers build dist src/*.egg-info kernels/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-lake
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
