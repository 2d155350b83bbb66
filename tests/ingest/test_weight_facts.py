"""What weights say is computed once, and ahead of statistics while the last shard is written."""

import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

import scopelake
from scopelake import tiny
from scopelake.errors import CoderFileError
from scopelake.ingest import weight_facts
from scopelake.ingest.budget import Budget
from scopelake.ingest.decoder_rows import readout_need
from scopelake.ingest.stages import Stages
from scopelake.ingest.weight_facts import WeightFacts
from scopelake.store import writing

CODERS = [SimpleNamespace(name=name, width=8, l0=1.0, sites=()) for name in "abc"]
PLENTY, LITTLE = 1 << 40, 1 << 20


@pytest.fixture
def computed(monkeypatch):
    """Names of the coders whose weights were looked at, in turn."""
    names = []

    def compute(coder, device, readout):
        names.append(coder.name)
        return {"decoder_norm": pa.array([float(len(names))])}

    monkeypatch.setattr(weight_facts, "weight_columns", compute)
    return names


def facts(tiny_model, kept=None, limit=PLENTY):
    source = SimpleNamespace(
        device=torch.device("cpu"), readout=lambda: None,
        readout_need=lambda: readout_need(tiny_model.d_model, tiny_model.vocab_size),
    )  # fmt: skip
    return WeightFacts(source, Budget(limit, [], 1), Stages(), kept)


def never():
    return False


def test_what_was_computed_ahead_is_not_computed_again(tiny_model, computed):
    of = facts(tiny_model)
    of.ahead(CODERS[:2], never)
    assert computed == ["a", "b"]
    assert [of.of(c)["decoder_norm"][0].as_py() for c in CODERS] == [1, 2, 3]
    assert computed == ["a", "b", "c"]


def test_columns_are_let_go_of_unless_they_are_kept(tiny_model, computed):
    of, kept = facts(tiny_model), {}
    of.of(CODERS[0])
    of.of(CODERS[0])
    assert computed == ["a", "a"]
    keeping = facts(tiny_model, kept)
    keeping.ahead(CODERS[:1], never)
    assert keeping.of(CODERS[0]) is keeping.of(CODERS[0]) is kept["a"]
    assert computed == ["a", "a", "a"]


def test_it_ends_once_there_is_other_work(tiny_model, computed):
    facts(tiny_model).ahead(CODERS, lambda: len(computed) == 2)
    assert computed == ["a", "b"]


@pytest.mark.parametrize("bound", ["memory", "columns"])
def test_nothing_is_computed_ahead_that_may_not_fit(tiny_model, computed, monkeypatch, bound):
    of = facts(tiny_model, limit=LITTLE if bound == "memory" else PLENTY)
    if bound == "columns":
        monkeypatch.setattr(weight_facts, "_MOST", 8)  # a column of one number fits, no second
    of.ahead(CODERS, never)
    assert computed == (["a", "b"] if bound == "columns" else [])


def test_threads_that_ask_at_once_share_what_is_computed(tiny_model, computed):
    of = facts(tiny_model, {})
    threads = [threading.Thread(target=of.of, args=(CODERS[0],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == ["a"]


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "a.txt").write_text("import os\n" * 200)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus(
        "text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=32, shard_contexts=8
    )
    return lake


def ingest(lake, folder=None):
    folder = folder or tiny.coders_path() / "resid_post_all/layer_1_width_1024_l0_small"
    return lake.ingest("text", model=tiny.MODEL_NAME, saes=[folder], device="cpu")


def test_it_is_computed_while_the_last_shard_is_written(lake, monkeypatch):
    there, real, write = threading.Event(), weight_facts.weight_columns, writing.write_firings
    n_shards = lake.sql("SELECT ceil(n_contexts / 8)::INT AS n FROM corpora")["n"][0].as_py()

    def columns(*given):
        found = real(*given)
        there.set()
        return found

    def written(*given, shard, **options):
        if shard == n_shards - 1:
            assert there.wait(60)  # or it would be computed after all is written
        return write(*given, shard=shard, **options)

    monkeypatch.setattr(weight_facts, "weight_columns", columns)
    monkeypatch.setattr(writing, "write_firings", written)
    done = ingest(lake)
    assert n_shards > 2
    assert done.stages["readout"] > 0
    features = lake.sql("SELECT count(top_tokens) AS n, count(*) AS all FROM features").to_pylist()
    assert features == [{"n": 1024, "all": 1024}]


def test_what_weights_cannot_say_ends_the_ingest_after_its_shards(lake, write_coder, tmp_path):
    folder = write_coder(tmp_path)
    (file,) = folder.rglob("params.safetensors")
    values = load_file(file)
    values["w_dec"][3] = float("nan")
    save_file(values, file)
    with pytest.raises(CoderFileError, match="w_dec that is not finite"):
        ingest(lake, folder)
    lake.refresh()
    rows = lake.sql(
        "SELECT (SELECT count(DISTINCT shard) FROM files WHERE kind = 'codes') AS shards, "
        "(SELECT count(*) FROM features) AS described, (SELECT min(state) FROM runs) AS state"
    ).to_pylist()
    assert rows[0]["shards"] > 2
    assert (rows[0]["described"], rows[0]["state"]) == (0, "interrupted")
