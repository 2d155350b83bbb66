"""Writing beside this process: real processes, the same files, and ends that lose nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from scopelake.errors import InvalidArgumentError, WriterLostError
from scopelake.store.context_codes import ContextCodes, ContextPart
from scopelake.store.running import Running
from scopelake.store.writing import Beside, Inside, WriteJob

WIDTH = 50


def codes(seed, n_contexts=30, n_tokens=20):
    """Contexts in another order than their own; every third fires nowhere."""
    rng = np.random.default_rng(seed)
    parts = []
    for index in rng.permutation(n_contexts):
        fires = rng.random((n_tokens, WIDTH)) < (0.0 if index % 3 == 1 else 0.3)
        features = np.nonzero(fires)[1].astype(np.int32)
        activations = rng.choice([0.5, 1.25, 3.0, 900.0], len(features)).astype(np.float32)
        parts.append(ContextPart(index, fires.sum(axis=1).astype(np.int32), features, activations))
    kinds = [np.array([2] + [0] * (n_tokens - 1), np.int8)] * n_contexts
    return ContextCodes(100 * seed, kinds, parts)


def job(store, scratch, *, seed=0, shard=0, corpus="c", of=None):
    return WriteJob(
        store.root, of or codes(seed), sae="a/b", corpus=corpus, shard=shard, run="r", bits=10,
        kept=None, scratch=scratch,
    )  # fmt: skip


@pytest.fixture
def scratch(store):
    with store.root.scratch() as place:
        yield place


@pytest.fixture
def beside():
    writing = Beside(2)
    yield writing
    writing.close()


def test_codes_of_contexts_are_firings_in_order():
    found = codes(3)
    columns = found.firings()
    assert columns.token_major() is columns
    by_index = {part.index: part for part in found.parts}
    expected = [
        (300 + index, position, feature)
        for index in range(30)
        for position, feature in zip(
            np.repeat(np.arange(20), by_index[index].counts), by_index[index].features, strict=True
        )
    ]
    rows = zip(columns.context, columns.position, columns.feature, strict=True)
    assert [tuple(map(int, row)) for row in rows] == [tuple(map(int, row)) for row in expected]
    assert set(columns.kind[columns.position == 0]) == {2}
    assert len(ContextCodes(0, [], []).firings()) == 0


def test_processes_write_what_threads_write(store, scratch, beside):
    """Shard after shard, so that what was selected before counts; two pieces of the last."""
    found = {}
    for name, writing in (("beside", beside), ("inside", Inside())):
        running, found[name] = Running(WIDTH), []
        for shard in (0, 1, 1):
            for receipt in writing.write(job(store, scratch, seed=shard, shard=shard), running):
                found[name].append((receipt.table, receipt.n_rows, receipt.checksum, receipt.stats))
                assert store.root.read(receipt.path)
            if shard == 0:
                running.accept(shard)
    assert found["beside"] == found["inside"]
    peaks = [n for table, n, *_ in found["beside"] if table == "peaks"]
    assert peaks[0] > peaks[2] >= 0  # it knew what was selected before


def test_several_are_written_at_once(store, scratch, beside):
    found = {}

    def write(shard):
        found[shard] = beside.write(job(store, scratch, shard=shard), Running(WIDTH))

    threads = [threading.Thread(target=write, args=(shard,)) for shard in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(6))
    assert len(children()) == 2
    beside.close()
    assert children() == []
    assert len(beside.write(job(store, scratch, shard=7), Running(WIDTH))) == 4  # begun anew


def test_an_error_is_raised_where_it_was_asked_for_and_the_process_goes_on(store, scratch, beside):
    with pytest.raises(InvalidArgumentError, match="corpus"):
        beside.write(job(store, scratch, corpus="../x"), Running(WIDTH))
    (process,) = children()
    bad = ContextCodes(
        0, [np.zeros(1, np.int8)],
        [ContextPart(0, np.ones(1, np.int32), np.zeros(1, np.int32), np.array([np.nan], "f4"))],
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="NaN"):
        beside.write(job(store, scratch, of=bad), Running(WIDTH))
    beside.write(job(store, scratch), Running(WIDTH))
    assert children() == [process]


def test_closing_waits_for_what_is_being_written(store, scratch, beside):
    for shard in range(4):
        found = []

        def write(to=found, shard=shard):
            to += beside.write(job(store, scratch, shard=shard), Running(WIDTH))

        thread = threading.Thread(target=write)
        thread.start()
        beside.close()
        thread.join()
        assert len(found) == 4
        beside.close()
        assert children() == []


def test_what_cannot_be_sent_harms_no_other(store, scratch, beside):
    class Unsendable:
        def __reduce__(self):
            raise MemoryError("no room")

    sent = codes(0)
    bad = ContextCodes(0, sent.kinds, [*sent.parts, Unsendable()])
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            beside.write(job(store, scratch, of=bad), Running(WIDTH))
        assert len(beside.write(job(store, scratch), Running(WIDTH))) == 4


def test_a_killed_process_is_told_of_and_another_takes_its_place(store, scratch):
    writing = Beside(1)
    running = Running(WIDTH)
    writing.write(job(store, scratch), running)
    running.forget(0)
    (process,) = children()
    process.kill()
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    with pytest.raises(WriterLostError, match=r"a/b was to be written; .* status -9; .* memory"):
        writing.write(job(store, scratch), running)
    assert len(writing.write(job(store, scratch), running)) == 4
    assert children() != [process]
    writing.close()


def test_it_ends_with_whoever_asks(store, tmp_path):
    """Killed without a word, and interrupted: the terminal's Ctrl-C is not the writer's."""
    program = f"""
import sys, time
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import test_writing as t
from pathlib import Path
from scopelake.store.lake_store import LakeStore
store = LakeStore.open({str(store.root.path)!r})
writing = t.Beside(1)
writing.write(t.job(store, Path({str(tmp_path)!r})), t.Running(t.WIDTH))
print(t.children()[0].pid, flush=True)
time.sleep(600)
"""
    for stop in (signal.SIGKILL, signal.SIGINT):
        asking = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        writer = psutil.Process(int(asking.stdout.readline()))
        assert os.getsid(writer.pid) != os.getsid(asking.pid)
        asking.send_signal(stop)
        asking.wait(30)
        asking.stdout.close()
        writer.wait(30)  # init reaps it, or raises that it is still there


def children():
    """Processes that write for this one."""
    found = psutil.Process().children()
    return [child for child in found if "scopelake.store.writing" in child.cmdline()]


def test_it_takes_the_memory_that_it_says(store, scratch, beside):
    """Also once it has written two million firings, which take 300 MB meanwhile."""
    many = [
        ContextPart(i, np.full(20, 1_000, np.int32), np.tile(np.arange(1_000, dtype=np.int32), 20),
                    np.ones(20_000, np.float32)) for i in range(100)
    ]  # fmt: skip
    large = ContextCodes(0, [np.zeros(20, np.int8)] * 100, many)
    for shard in range(2):
        beside.write(job(store, scratch, shard=shard, of=large), Running(1_000))
    beside.write(job(store, scratch, shard=2), Running(WIDTH))  # it gives back before it reads on
    (process,) = children()
    assert beside.n_bytes == 2 * 160_000_000
    assert process.memory_info().rss < 160_000_000 * 1.25
