"""Ending an ingest on a cluster of real processes: what is begun is kept, what waits given back."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, Event, LocalCluster

import scopelake
from scopelake import tiny
from scopelake.ingest.distribute import Cluster

SAE = "resid_post_all/layer_1_width_1024_l0_small"
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(150))
ASKED = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None,
                     host="127.0.0.1") as made,
        Client(made) as found,
    ):  # fmt: skip
        yield found


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    made = scopelake.create(tmp_path / "lake")
    made.add_corpus("text", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=4)  # fmt: skip
    return made


def rows(lake):
    lake.refresh()
    return lake.sql("SELECT * FROM codes ORDER BY ALL").to_pylist()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    (folder / "text.txt").write_text(TEXT)
    made = scopelake.create(folder / "lake")
    made.add_corpus("text", folder / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=4)  # fmt: skip
    made.ingest("text", **ASKED)
    return rows(made)


def committed(lake):
    lake.refresh()
    found = lake.sql("SELECT DISTINCT shard FROM files WHERE kind = 'codes' ORDER BY shard")
    return found["shard"].to_pylist()


def await_no_tasks(client):
    """Wait until the scheduler has forgotten all tasks."""
    deadline = time.monotonic() + 60
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline


def await_known(client, n_tasks):
    """Wait until the worker knows of so many tasks: what it is told comes a little later."""
    deadline = time.monotonic() + 50
    while client.run(lambda dask_worker: len(dask_worker.state.tasks)) != dict.fromkeys(
        client.scheduler_info()["workers"], n_tasks
    ):
        assert time.monotonic() < deadline


def marking(folder):
    """Return a task that says that it has begun, and, if so asked, waits for an event."""

    def mark(name, event=None):
        (folder / str(name)).touch()
        if event is not None:
            Event(event).wait(60)
        return name

    return mark


def begun(folder):
    return sorted(path.name for path in folder.iterdir())


def await_begun(folder, name):
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < deadline


def test_what_was_not_begun_is_cancelled(tmp_path, client):
    mark = marking(tmp_path)
    with Cluster(client) as cluster:
        first = cluster.submit(mark, "first", "go on")
        await_begun(tmp_path, "first")
        waiting = [cluster.submit(mark, f"waiting-{i}") for i in range(5)]
        # It runs beside the task that has the only thread.
        cluster.everywhere(mark, "beside")
        assert begun(tmp_path) == ["beside", "first"]
        await_known(client, 2)  # it has one in hand
        cluster.cancel(waiting)
        assert all(future.cancelled() for future in waiting)
        await_known(client, 1)
        Event("go on", client=client).set()
        assert first.result() == "first"
        assert cluster.submit(mark, "last").result() == "last"
    assert begun(tmp_path) == ["beside", "first", "last"]
    assert client.status == "running"  # it is not ours


def test_results_that_are_not_wanted_any_more_are_not_made(tmp_path, client):
    mark = marking(tmp_path)

    def act(number):
        return mark(number, "go on with tasks" if number else None)

    results = Cluster(client)(act, range(8))
    assert next(results) == 0
    await_begun(tmp_path, "1")
    await_known(client, 3)  # the first result, what is begun, and one in hand
    results.close()
    await_known(client, 1)
    Event("go on with tasks", client=client).set()
    await_no_tasks(client)
    assert client.submit(mark, "last", pure=False).result() == "last"
    assert begun(tmp_path) == ["0", "1", "last"]


def test_a_stop_keeps_what_is_begun_and_gives_back_what_waits(lake, client, expected):
    stop = threading.Event()
    done = lake.ingest("text", scheduler=client, stop=stop,
                       progress=lambda now: now.n_bytes and stop.set(), **ASKED)  # fmt: skip
    there = committed(lake)
    # Before the stop a commit may take in several, behind it only what was begun.
    assert 0 < len(there) < done.n_shards
    assert done.n_left == done.n_shards - len(there)
    assert done.n_left >= 4
    assert done.failed == ()
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["stopped"]
    await_no_tasks(client)
    assert lake.vacuum().n_files == 0  # nothing was made for nothing
    # The workers are free for the next ingest, also for the same one.
    rest = lake.ingest("text", scheduler=client, **ASKED)
    assert rest.n_shards == done.n_left
    assert rest.n_left == 0
    assert rows(lake) == expected


def test_an_interrupt_gives_up_what_is_being_made_and_frees_the_workers(lake, client, expected):
    def interrupt(now):
        if now.n_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lake.ingest("text", scheduler=client, progress=interrupt, **ASKED)
    await_no_tasks(client)
    there = committed(lake)
    assert len(there) > 0
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["interrupted"]
    lake.ingest("text", scheduler=client, **ASKED)
    assert rows(lake) == expected
    assert lake.verify().broken == ()


INTERRUPTED = """
import os, signal, sys
from scopelake import progress
from scopelake.cli import main

class Show:
    def __init__(self, *given): self.is_sent = False
    def __enter__(self): return self.show
    def __exit__(self, *error): pass
    def show(self, now):
        if now.n_bytes and not self.is_sent:
            self.is_sent = True
            os.killpg(0, signal.SIGINT)  # as a terminal does: the workers get it too

progress.ingest_progress = Show
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_in_a_terminal_stops_workers_at_the_end_of_their_shards(lake, tmp_path, expected):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "interrupted.py"), "ingest", str(lake.path), "text",
               "--model", tiny.MODEL_NAME, "--sae", str(tiny.coders_path() / SAE), "--device",
               "cpu", "--scheduler", "local:1"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(scopelake.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "shards left; the lake is whole" in done.stderr
    assert 0 < len(committed(lake)) < lake.sql("SELECT n_shards FROM runs")["n_shards"][0].as_py()
    lake.ingest("text", **ASKED)
    assert rows(lake) == expected
