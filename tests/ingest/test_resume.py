"""An ingest that is killed or interrupted, then asked for again, leaves the same lake."""

import subprocess
import sys

import pytest

import scopelake
from scopelake import tiny

SAES = ["resid_post_all/layer_0*", "transcoder_all/layer_1*"]
KILLED_INGEST = """
import os, signal, sys
import scopelake
from scopelake import tiny

lake, at = scopelake.open(sys.argv[1]), int(sys.argv[2])
calls = []

def kill(progress):
    calls.append(progress)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)

lake.ingest(
    "text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / s for s in sys.argv[3:]],
    dense=[("resid_post", 0)], batch_tokens=400, device="cpu", progress=kill,
)
"""


@pytest.fixture(scope="module")
def make_lake(tmp_path_factory):
    """Return a function that makes a lake with a corpus of 6 shards and nothing ingested."""
    root = tmp_path_factory.mktemp("resume")
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    (root / "a.txt").write_text(text[:5000])

    def make(name):
        lake = scopelake.create(root / name)
        lake.add_corpus("text", root / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                        shard_contexts=5)  # fmt: skip
        return lake

    return make


def ingest(lake, progress=None, saes=SAES):
    return lake.ingest(
        "text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / s for s in saes],
        dense=[("resid_post", 0)], batch_tokens=400, device="cpu", progress=progress,
    )  # fmt: skip


def contents(lake):
    """Every row of every table of firings, and the dense activations, as bytes."""
    tables = ("codes", "postings", "peaks", "features")
    rows = {t: lake.sql(f"SELECT * FROM {t} ORDER BY ALL").to_pylist() for t in tables}
    return rows, lake.activations(0)[:].tobytes()


@pytest.fixture(scope="module")
def whole(make_lake):
    lake = make_lake("whole")
    done = ingest(lake)
    assert done.n_shards >= 4
    return contents(lake)


def check_resumes(lake, whole):
    ingest(lake)
    assert contents(lake) == whole
    files = lake.sql("SELECT path, n_bytes FROM files").to_pylist()
    assert len({f["path"] for f in files}) == len(files)
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["complete"]
    assert ingest(lake).already_complete


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_killed_ingest_resumes_to_the_same_lake(make_lake, whole, at):
    lake = make_lake(f"killed-{at}")
    saes = [str(s) for s in SAES]
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED_INGEST, str(lake.path), str(at), *saes],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    lake.refresh()
    check_resumes(lake, whole)


def test_an_interrupted_ingest_resumes_to_the_same_lake(make_lake, whole):
    lake = make_lake("interrupted")
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(lake, interrupt)
    lake.refresh()
    assert lake.info().runs[0].state == "running"
    assert "not complete" in lake.info().to_text()
    check_resumes(lake, whole)


def test_a_coder_added_later_gives_what_ingesting_both_gives(make_lake, whole):
    lake = make_lake("later")
    first = ingest(lake, saes=SAES[:1])
    second = ingest(lake)
    assert first.n_shards == second.n_shards
    assert contents(lake) == whole
    assert second.firings == sum(
        r["sae"].split("/")[-2] == "transcoder_all" for r in whole[0]["codes"]
    )
