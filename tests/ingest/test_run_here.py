"""Shards made in this process: the device waits for no commit, and a stop begins no more."""

import threading

import pytest

import scopelake
from scopelake import tiny
from scopelake.ingest import run_here
from scopelake.ingest.budget import PIECES
from scopelake.ingest.worker import Worker

SAE = "resid_post_all/layer_1_width_1024_l0_small"
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(60))
ASKED = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
SHARD = 8


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    made = scopelake.create(tmp_path / "lake")
    made.add_corpus("text", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=SHARD)  # fmt: skip
    return made


def committed(lake):
    lake.refresh()
    return set(lake.sql("SELECT shard FROM files WHERE kind = 'codes'")["shard"].to_pylist())


def n_shards(lake):
    return -(-lake.sql("SELECT n_contexts FROM corpora")["n_contexts"][0].as_py() // SHARD)


def test_the_next_shard_is_begun_while_a_commit_takes_its_time(lake, monkeypatch):
    begun, waited = threading.Event(), []
    commit, read = run_here._commit, Worker._read

    def slow(made, worker, work):
        waited.append(begun.wait(60))
        commit(made, worker, work)

    def reading(worker, shard):
        if shard.index == PIECES:
            begun.set()
        return read(worker, shard)

    monkeypatch.setattr(run_here, "_commit", slow)
    monkeypatch.setattr(Worker, "_read", reading)
    lake.ingest("text", **ASKED)
    # The first commit ended only because the shard after those in memory was read meanwhile.
    assert waited[0]
    assert committed(lake) == set(range(n_shards(lake)))


def test_a_stop_begins_no_shard_that_waits(lake):
    stop = threading.Event()
    done = lake.ingest("text", **ASKED, progress=lambda _: stop.set(), stop=stop)
    there = committed(lake)
    # It came with the first shard's first batch; what was in memory then is finished.
    assert there == set(range(len(there)))
    assert 1 <= len(there) <= PIECES < n_shards(lake)
    assert done.n_left == n_shards(lake) - len(there)
    lake.ingest("text", **ASKED)
    assert committed(lake) == set(range(n_shards(lake)))


class Waiting:
    """Tells when shard `PIECES` is encoded, and what is written then."""

    def __init__(self, monkeypatch):
        self.encoded, self.written = threading.Event(), []
        look_back, write = Worker._running, Worker._write
        shard_of = threading.local()

        def pieces(worker, shard, *rest):
            shard_of.index = shard.index
            yield from of_shard(worker, shard, *rest)

        def looking_back(worker, names, before_write):
            if shard_of.index == PIECES:
                self.encoded.set()
            return look_back(worker, names, before_write)

        def writing(worker, shard, *rest):
            self.written.append(shard.index)
            return write(worker, shard, *rest)

        of_shard = Worker._pieces
        monkeypatch.setattr(Worker, "_pieces", pieces)
        monkeypatch.setattr(Worker, "_running", looking_back)
        monkeypatch.setattr(Worker, "_write", writing)


def test_a_shard_looks_back_at_what_was_committed_before_those_in_memory(lake, monkeypatch):
    waiting, commit, seen = Waiting(monkeypatch), run_here._commit, {}

    def slow(made, worker, work):
        index = made[0].shard.index
        if index == 0:
            assert waiting.encoded.wait(60)
            assert PIECES not in waiting.written
        seen[index] = set().union(*made[0].looked_back.values())
        commit(made, worker, work)

    monkeypatch.setattr(run_here, "_commit", slow)
    lake.ingest("text", **ASKED)
    assert all(set(range(i - PIECES + 1)) <= seen[i] for i in range(n_shards(lake)))


def test_a_commit_that_fails_releases_the_shard_that_waits_for_it(lake, monkeypatch):
    waiting = Waiting(monkeypatch)

    def failing(made, worker, work):
        assert waiting.encoded.wait(60)
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(run_here, "_commit", failing)
        with pytest.raises(OSError, match="no room"):
            lake.ingest("text", **ASKED)
    assert PIECES not in waiting.written
    assert committed(lake) == set()
    lake.ingest("text", **ASKED)
    assert committed(lake) == set(range(n_shards(lake)))
