"""An ingest that is killed or interrupted, then asked for again, leaves the same lake."""

import platform
import subprocess
import sys

import psutil
import pytest

import scopelake
from scopelake import tiny
from scopelake.ingest import pipeline
from scopelake.store import processes

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


def kill_ingest(lake, at, saes):
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED_INGEST, str(lake.path), str(at), *saes],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    lake.refresh()


def states(lake):
    return sorted(lake.sql("SELECT state FROM runs")["state"].to_pylist())


def test_a_killed_run_is_said_to_be_interrupted(make_lake, monkeypatch):
    lake = make_lake("said")
    kill_ingest(lake, 4, SAES[:1])
    assert states(lake) == ["running"]  # it could not say more
    (run,) = lake.info().runs
    assert (run.state, run.elsewhere) == ("interrupted", None)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_where", lambda: "another machine")
        (run,) = lake.info().runs
        assert run.state == "running"
        assert run.elsewhere == platform.node()
        assert f"is running on {platform.node()}, or was killed there" in lake.info().to_text()
        ingest(lake, saes=SAES[1:])
        assert states(lake) == ["complete", "running"]  # from elsewhere nobody can tell
    ingest(lake, saes=SAES)  # another run, which does the killed one's work
    assert states(lake) == ["complete", "complete", "interrupted"]
    assert ingest(lake, saes=SAES[:1]).already_complete
    assert states(lake) == ["complete"] * 3
    before = lake.snapshot
    assert ingest(lake, saes=SAES[:1]).snapshot == before


def test_a_run_that_runs_is_not_called_interrupted(make_lake):
    lake, seen = make_lake("runs"), []

    def look(progress):
        if not seen:
            other = scopelake.open(lake.path)
            seen.append((other.info().runs[0], other.info().to_text()))
            ingest(other, saes=SAES[1:])
            seen.append(states(other))

    ingest(lake, look, SAES[:1])
    (run, text), both = seen
    assert (run.state, run.elsewhere) == ("running", None)
    assert "is running, not complete" in text
    assert "ingest again" not in text
    assert both == ["complete", "running"]
    assert states(lake) == ["complete", "complete"]


def test_a_process_is_known_by_more_than_its_number():
    process = processes.this_process()
    assert processes.is_gone(process) is False
    began_later = {"ticks": process["ticks"] and process["ticks"] + 1, "began": 0.0}
    assert processes.is_gone(process | began_later) is True
    assert processes.is_gone(process | {"where": "elsewhere"}) is None
    assert processes.is_gone(None) is None


@pytest.mark.parametrize("has_ticks", [True, False])
def test_a_clock_that_is_set_ends_no_process(monkeypatch, has_ticks):
    process = processes.this_process()
    if not has_ticks:  # no Linux, or a record of an older version
        del process["ticks"]
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 30)
    assert processes.is_gone(process) is False


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux hides processes in /proc")
@pytest.mark.parametrize("has_ticks", [True, False])
def test_whether_a_hidden_process_is_gone_is_not_known(monkeypatch, has_ticks):
    process = processes.this_process() if has_ticks else processes.this_process() | {"ticks": None}

    def refuse(pid, signal):
        raise PermissionError

    def hide(self):
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(processes.os, "kill", refuse)
    monkeypatch.setattr(processes, "_ticks", lambda pid: None)
    monkeypatch.setattr(psutil.Process, "create_time", hide)
    assert processes.is_gone(process) is None


def test_an_ingest_that_breaks_off_at_its_statistics_says_so(make_lake, monkeypatch):
    lake = make_lake("statistics")

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_statistics", fail)
        with pytest.raises(OSError, match="no space left"):
            ingest(lake, saes=SAES[:1])
    lake.refresh()
    assert states(lake) == ["interrupted"]
    ingest(lake, saes=SAES[:1])
    assert states(lake) == ["complete"]


def test_a_caller_that_fails_after_the_end_leaves_the_run_complete(make_lake):
    lake = make_lake("after")

    def fail(progress):
        other = scopelake.open(lake.path)
        if states(other) == ["complete"]:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ingest(lake, fail, SAES[:1])
    lake.refresh()
    assert states(lake) == ["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_killed_ingest_resumes_to_the_same_lake(make_lake, whole, at):
    lake = make_lake(f"killed-{at}")
    kill_ingest(lake, at, SAES)
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
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["interrupted"]
    assert "was interrupted, not complete; ingest again to resume it" in lake.info().to_text()
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
