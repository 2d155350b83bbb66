"""An ingest whose firings are written by processes beside it, as where a GPU computes."""

import psutil
import pytest

import scopelake
from scopelake import tiny
from scopelake.ingest import worker
from scopelake.store.writing import Beside

SAES = [
    tiny.coders_path() / f"resid_post_all/layer_{layer}_width_1024_l0_small" for layer in (1, 3)
]
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(60))
TABLES = ("codes", "postings", "peaks", "samples", "features")


@pytest.fixture
def build(tmp_path):
    """Ingest the text into a lake of that name; return what it stored, by table."""

    def make(name, **asked):
        (tmp_path / "text.txt").write_text(TEXT)
        lake = scopelake.create(tmp_path / name)
        lake.add_corpus("text", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME,
                        context_length=32, shard_contexts=8)  # fmt: skip
        done = lake.ingest("text", model=tiny.MODEL_NAME, saes=SAES, device="cpu", **asked)
        assert (done.n_left, done.failed) == (0, ())
        lake.refresh()
        assert lake.verify().is_whole
        rows = lake.sql("SELECT kind, sae, shard, checksum FROM files ORDER BY ALL").to_pylist()
        return {kind: [r for r in rows if r["kind"] == kind] for kind in TABLES}

    return make


@pytest.fixture
def beside(monkeypatch):
    """Have it write as where a GPU computes; return the writing that it began."""
    begun = []

    def begin():
        begun.append(Beside(2))
        return begun[-1]

    monkeypatch.setattr(worker, "Inside", begin)
    return begun


def writers():
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "scopelake.store.writing" in child.cmdline()]


def test_it_stores_the_same_and_leaves_no_process(build, beside, monkeypatch):
    found = build("beside")
    assert len(beside) == 1
    assert writers() == []
    monkeypatch.undo()
    expected = build("inside")
    assert found == expected
    assert len(found["codes"]) > 8


def test_a_writer_that_is_killed_costs_a_try_of_its_shard(build, beside):
    killed = []

    def kill_once(_):
        if not killed and (there := writers()):
            killed.append(there[0])
            there[0].kill()

    found = build("beside", progress=kill_once)
    assert len(killed) == 1
    again = build("again")
    # Which samples still count depends on what was committed before.
    assert all(found[kind] == again[kind] for kind in ("codes", "postings", "features"))
