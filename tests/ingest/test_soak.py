"""Ingests that are killed at random moments, alone and in pairs: the lake ends the same.

make soak     100 rounds; the tests run SCOPELAKE_SOAK_ROUNDS of them, 4 by default
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import scopelake
from scopelake import tiny

ROUNDS = int(os.environ.get("SCOPELAKE_SOAK_ROUNDS", "4"))
SAES = ["resid_post_all/layer_0*", "transcoder_all/layer_1*", "mlp_out_all/*"]
WORKER = """
import sys
import scopelake
from scopelake import tiny
from scopelake.ingest import pipeline, model
import transformers.models.gemma3.modeling_gemma3

lake = scopelake.open(sys.argv[1])
print("ready", flush=True)
lake.ingest(
    "text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / s for s in sys.argv[2:]],
    dense=[("resid_post", 0)], batch_tokens=400, device="cpu",
)
"""


def start(*jobs):
    """Ingests in processes of their own, about to begin; a job is a lake and its coders."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(path), *saes],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for path, saes in jobs
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    return workers


def ingest(path):
    saes = [tiny.coders_path() / s for s in SAES]
    return scopelake.open(path).ingest(
        "text", model=tiny.MODEL_NAME, saes=saes, dense=[("resid_post", 0)], batch_tokens=400,
        device="cpu",
    )  # fmt: skip


def contents(path):
    """Every row of every table of firings, and the dense activations, as bytes."""
    lake = scopelake.open(path)
    tables = ("codes", "postings", "peaks", "samples", "features")
    rows = {t: lake.sql(f"SELECT * EXCLUDE (sae) FROM {t} ORDER BY ALL") for t in tables}
    return rows, lake.activations(0)[:].tobytes()


def check(path, whole):
    lake = scopelake.open(path)
    assert contents(path) == whole
    files = lake.sql("SELECT path FROM files")["path"].to_pylist()
    assert len(set(files)) == len(files)
    assert lake.sql("SELECT DISTINCT state FROM runs")["state"].to_pylist() == ["complete"]
    for table in ("saes", "models", "corpora"):
        rows = lake.sql(f"SELECT * FROM {table}").num_rows
        assert rows == {"saes": 3, "models": 1, "corpora": 1}[table]
    ids = lake.snapshots()["snapshot"].to_pylist()
    assert ids == list(range(1, len(ids) + 1))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A lake with a corpus of 12 shards and nothing ingested."""
    root = tmp_path_factory.mktemp("soak")
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    (root / "a.txt").write_text(text[:8000])
    lake = scopelake.create(root / "empty")
    lake.add_corpus("text", root / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                    shard_contexts=4)  # fmt: skip
    return lake.path


@pytest.fixture(scope="module")
def whole(empty):
    """What an ingest that nobody disturbs leaves, and how long it takes."""
    path = shutil.copytree(empty, empty.with_name("whole"))
    (worker,) = start((path, SAES))
    started = time.monotonic()
    assert worker.wait() == 0, worker.stderr.read()
    return contents(path), time.monotonic() - started


@pytest.mark.slow
def test_two_ingests_at_once_leave_the_same_lake(empty, whole):
    path = shutil.copytree(empty, empty.with_name("pair"))
    workers = start((path, SAES), (path, SAES), (path, SAES[:2]))
    codes = [worker.wait() for worker in workers]
    assert codes == [0, 0, 0], [worker.stderr.read() for worker in workers]
    check(path, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_killed_ingest_ends_in_the_same_lake(empty, whole, seed):
    rng = np.random.default_rng(seed)
    path = shutil.copytree(empty, empty.with_name(f"killed-{seed}"))
    workers = start(*[(path, SAES)] * int(rng.integers(1, 3)))
    for worker, delay in zip(workers, rng.uniform(0, whole[1], len(workers)), strict=True):
        try:
            worker.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    ingest(path)
    check(path, whole[0])
    assert ingest(path).already_complete
    shutil.rmtree(path)
