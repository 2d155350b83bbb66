"""Appending: what was there stays, what is new is as if all had been added at once."""

import json

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import (
    CorpusNotFoundError,
    InvalidArgumentError,
    LakeBusyError,
    NotIngestedError,
)

SAE = "resid_post_all/layer_0_width_1024_l0_small"
TABLES = ("codes", "postings", "peaks")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three files of text: 5, 3 and 4 contexts of 64, or about."""
    root = tmp_path_factory.mktemp("append")
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    for name, part in (("a", text[:1100]), ("b", text[1100:1700]), ("c", text[1700:2500])):
        (root / f"{name}.txt").write_text(part)
    return root


def add(lake, *files, **options):
    return lake.add_corpus(
        "text", files, tokenizer=tiny.MODEL_NAME, context_length=64, shard_contexts=4, **options
    )


def ingest(lake):
    return lake.ingest(
        "text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / SAE], dense=[("resid_post", 0)],
        device="cpu",
    )  # fmt: skip


def files_of(lake, *kinds):
    """{path: checksum} of the files of a lake, as they are on the disk."""
    rows = lake.sql("SELECT path, kind FROM files").to_pylist()
    return {
        r["path"]: (scopelake_path(lake) / r["path"]).read_bytes()
        for r in rows
        if r["kind"] in kinds
    }


def scopelake_path(lake):
    from pathlib import Path

    return Path(lake.path)


def renumbered(lake, table):
    """Rows with the rank of a context among those that there are in place of its number."""
    query = f"""
        SELECT * REPLACE (n AS context) FROM {table} JOIN (
            SELECT corpus, context, row_number() OVER (ORDER BY context) - 1 AS n FROM contexts
        ) USING (corpus, context) ORDER BY ALL
    """
    return [{k: v for k, v in r.items() if k != "n"} for r in lake.sql(query).to_pylist()]


@pytest.fixture(scope="module")
def at_once(texts, tmp_path_factory):
    lake = scopelake.create(tmp_path_factory.mktemp("once") / "lake")
    add(lake, *(texts / f"{n}.txt" for n in "abc"))
    ingest(lake)
    return lake


def test_what_is_appended_is_as_if_added_at_once(texts, tmp_path, at_once):
    lake = scopelake.create(tmp_path / "lake")
    first = add(lake, texts / "a.txt")
    ingest(lake)
    assert first.n_contexts % 4  # the last shard is not full
    data = ("codes", "postings", "peaks", "samples", "contexts", "dense")
    before, snapshot = files_of(lake, *data), lake.snapshot
    told = lake.sql("SELECT * FROM codes ORDER BY ALL").to_pylist()
    for name in "bc":
        added = lake.append_corpus("text", texts / f"{name}.txt")
        assert added.n_documents == 1
    assert lake.sql("SELECT * FROM features").num_rows == 0
    new = lake.sql("SELECT max(context) AS last FROM contexts")["last"][0].as_py()
    with pytest.raises(NotIngestedError, match=r"3 of 5 shards|2 of \d shards"):
        lake.features_at(new)
    assert lake.activations(0).shape[0] == new + 1
    assert not np.asarray(lake.activations(0)[new]).any()
    done = ingest(lake)
    assert (
        done.tokens
        == lake.sql(
            f"SELECT sum(n_tokens)::BIGINT AS n FROM contexts WHERE context >= {first.n_contexts}"
        )["n"][0].as_py()
    )
    # What was there is what it was, in the files in which it was.
    after = files_of(lake, *data)
    assert {path: after[path] for path in before} == before
    for table in TABLES:
        assert renumbered(lake, table) == renumbered(at_once, table), table
    features = "SELECT * FROM features ORDER BY feature"
    assert lake.sql(features).to_pylist() == at_once.sql(features).to_pylist()
    columns = "token_ids, text, document, document_index, part, char_start, char_end"
    contexts = f"SELECT {columns} FROM contexts ORDER BY context"
    assert lake.sql(contexts).to_pylist() == at_once.sql(contexts).to_pylist()
    counts = "SELECT n_documents, n_split, n_contexts, n_tokens, n_bos, n_duplicates FROM corpora"
    assert lake.sql(counts).to_pylist() == at_once.sql(counts).to_pylist()
    numbers = lake.sql("SELECT context FROM contexts ORDER BY ALL")["context"].to_numpy()
    starts = [n for n in numbers if n - 1 not in numbers]
    assert starts[0] == 0
    assert len(starts) == 3
    assert all(start % 4 == 0 for start in starts)
    array, whole = lake.activations(0), at_once.activations(0)
    stored = np.asarray(array[:])
    np.testing.assert_array_equal(stored[numbers].view(np.uint16),
                                  np.asarray(whole[:]).view(np.uint16))  # fmt: skip
    assert not np.delete(stored, numbers, axis=0).any()
    # The old snapshot is the old corpus.
    old = scopelake.open(lake.path, snapshot)
    assert old.sql("SELECT * FROM codes ORDER BY ALL").to_pylist() == told
    assert old.activations(0).shape[0] == first.n_contexts
    assert old.sql("SELECT n_contexts AS n FROM corpora")["n"][0].as_py() == first.n_contexts
    assert old.sql("SELECT * FROM features").num_rows == 1024
    assert lake.verify().is_whole
    assert lake.verify(all_snapshots=True).is_whole
    batches = list(lake.stream(0, batch_tokens=16, shuffle_tokens=64))
    there = at_once.sql("SELECT n_tokens - n_bos AS n FROM corpora")["n"][0].as_py()
    assert len(batches) == there // 16
    assert all(batch.float().abs().sum(dim=1).min() > 0 for batch in batches)


def test_evaluations_are_of_the_whole_corpus(texts, tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt")
    sae, counts = tiny.coders_path() / SAE, []
    for name in ("b", "c"):
        lake.ingest("text", model=tiny.MODEL_NAME, saes=[sae], evaluate=True, device="cpu")
        counts += lake.sql("SELECT n_contexts AS n FROM evaluations")["n"].to_pylist()
        lake.append_corpus("text", texts / f"{name}.txt")
        assert lake.sql("SELECT * FROM evaluations").num_rows == 0
    of_all = lake.sql("SELECT count(*) FILTER (document <> 'c.txt') AS n FROM contexts")
    assert counts[1] == of_all["n"][0].as_py() > counts[0]


def test_documents_are_appended_before_anything_is_ingested(texts, tmp_path, at_once):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt", texts / "b.txt")
    lake.append_corpus("text", texts / "c.txt")
    ingest(lake)
    assert renumbered(lake, "codes") == renumbered(at_once, "codes")
    assert lake.verify().is_whole


def test_an_append_that_is_interrupted_leaves_the_lake_as_it_was(texts, tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt")
    snapshot, files = lake.snapshot, sorted(p for p in tmp_path.rglob("*") if p.is_file())

    def stop(documents, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lake.append_corpus("text", texts / "b.txt", progress=stop)
    assert scopelake.open(lake.path).snapshot == snapshot
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == files


def test_two_appends_at_once_are_one(texts, tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt")

    def append_another(documents, tokens):
        scopelake.open(lake.path).append_corpus("text", texts / "c.txt")

    with pytest.raises(LakeBusyError, match="another writer appended some meanwhile"):
        lake.append_corpus("text", texts / "b.txt", progress=append_another)
    lake.refresh()
    ids = lake.sql("SELECT DISTINCT document AS d FROM contexts ORDER BY ALL")["d"]
    assert ids.to_pylist() == ["a.txt", "c.txt"]
    assert lake.verify().is_whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 32}, "context_length=32 was asked for; corpus 'text' was made with "
                                 "context_length=64"),
        ({"bos": "none"}, "bos='none' .* was made with bos='each'"),
        ({"stride": 8}, "stride=8 .* was made without stride, "),
        ({"packing": True}, "packing=True .* was made without packing"),
        ({"chat": True}, "chat=True .* was made without chat"),
    ],
)  # fmt: skip
def test_other_settings_are_refused(texts, tmp_path, options, message):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt")
    with pytest.raises(InvalidArgumentError, match=message):
        lake.append_corpus("text", texts / "b.txt", **options)
    assert scopelake.open(lake.path).snapshot == 2


def test_another_tokenizer_and_ids_that_are_there_are_refused(texts, tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    add(lake, texts / "a.txt")
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.model_path().iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    said = json.loads((other / "tokenizer.json").read_text())
    said["model"]["merges"] = said["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(InvalidArgumentError, match="tokenizer='other' was asked .* tokenizer="):
        lake.append_corpus("text", texts / "b.txt", tokenizer=other)
    with pytest.raises(InvalidArgumentError, match=r"has document id 'a\.txt'; an earlier"):
        lake.append_corpus("text", texts / "a.txt")
    with pytest.raises(CorpusNotFoundError):
        lake.append_corpus("no", texts / "a.txt")
    assert scopelake.open(lake.path).snapshot == 2


@pytest.mark.parametrize("options", [{}, {"stride": 20}, {"packing": True}, {"bos": "document"}])
def test_contents_that_are_there_are_duplicates(texts, tmp_path, options):
    lake = scopelake.create(tmp_path / "lake")
    text = (texts / "a.txt").read_text()
    for name, lines in (("one", [text, "short", "short"]), ("two", [text, "new", "short", "new"])):
        records = [{"text": t, "id": f"{name}{i}"} for i, t in enumerate(lines)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    added = add(lake, tmp_path / "one.jsonl", **options)
    assert (added.n_documents, added.n_duplicates) == (3, 1)
    appended = lake.append_corpus("text", tmp_path / "two.jsonl", duplicates="drop")
    assert (appended.n_documents, appended.n_duplicates) == (1, 3)
    row = lake.sql("SELECT n_documents, n_duplicates, duplicates FROM corpora").to_pylist()
    assert row == [{"n_documents": 4, "n_duplicates": 4, "duplicates": "drop"}]


def test_a_chat_with_a_reply_is_known_by_what_was_asked(tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    ask = {"messages": [{"role": "user", "content": "What is a list? " * 8}]}
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(ask))
    options = {"generate": 4, "device": "cpu"}
    lake.add_corpus("text", tmp_path / "one.jsonl", tokenizer=tiny.MODEL_NAME, chat=True,
                    context_length=16, **options)  # fmt: skip
    added = lake.append_corpus("text", tmp_path / "two.jsonl", **options)
    assert added.n_duplicates == 1
    assert lake.sql("SELECT n_duplicates AS n FROM corpora")["n"][0].as_py() == 1
