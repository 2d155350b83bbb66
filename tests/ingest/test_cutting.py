"""Overlap, BOS and packing: every token of a document is where an oracle puts it."""

import json

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import CorpusSourceError, InvalidArgumentError
from scopelake.ingest.documents import Document
from scopelake.ingest.tokens import BOS, CONTENT, TokenizedText
from scopelake.ingest.windows import Cutting, Packer, split, to_table

BOS_ID = 2


def tokenized(n_tokens, first=100, *, own_bos=False):
    """Token i covers two characters of the text; a BOS of its own covers five."""
    ids = np.arange(first, first + n_tokens, dtype=np.int32)
    kinds = np.full(n_tokens, CONTENT, dtype=np.int8)
    text = "".join(chr(97 + i % 26) + "." for i in range(n_tokens))
    starts = np.arange(n_tokens, dtype=np.int64) * 2
    if own_bos:
        ids, kinds = np.r_[np.int32(BOS_ID), ids], np.r_[np.int8(BOS), kinds]
        text, starts = "<bos>" + text, np.r_[np.int64(0), starts + 5]
    zeros = np.zeros(len(ids), dtype=np.int32)
    return TokenizedText(text, ids, starts, zeros.astype(np.int8), zeros, kinds)


def check_text(row):
    """Every token spells its own two characters, wherever it is."""
    ends = [*row["token_starts"][1:], len(row["text"])]
    for token, kind, start, end in zip(
        row["token_ids"], row["kinds"], row["token_starts"], ends, strict=True
    ):
        piece = row["text"][start:end]
        if kind == BOS:
            assert piece in ("", "<bos>")
        else:
            assert piece == chr(97 + token % 100 % 26) + "."


def rows_of(contexts, *, packed=False):
    return to_table(contexts, "c", 0, bos_id=BOS_ID, packed=packed).to_pylist()


@pytest.mark.parametrize("own_bos", [False, True])
@pytest.mark.parametrize("bos", ["each", "document", "none"])
@pytest.mark.parametrize("stride", [None, 1, 3, 7])
@pytest.mark.parametrize("n_tokens", [1, 7, 8, 9, 29])
def test_windows_are_where_they_are_said_to_be(n_tokens, stride, bos, own_bos):
    tokens = tokenized(n_tokens, own_bos=own_bos)
    contexts = split(
        Document("d", "d", tokens.text), tokens, Cutting(8, bos, stride), bos_id=BOS_ID
    )
    ids = tokens.token_ids.tolist()
    expected, start = [], 0
    while True:
        adds = (bos == "each" or (bos == "document" and start == 0)) and not (
            own_bos and start == 0
        )
        window = ids[start : start + 8 - adds]
        expected.append([BOS_ID] * adds + window)
        if start + len(window) >= len(ids):
            break
        start += len(window) if stride is None else stride
    rows = rows_of(contexts)
    assert [row["token_ids"] for row in rows] == expected
    for row in rows:
        check_text(row)
        assert row["text"] == tokens.text[row["char_start"] : row["char_end"]]
        assert row["documents"] is None


@pytest.mark.parametrize("bos", ["each", "document", "none"])
@pytest.mark.parametrize("lengths", [[3], [0, 8], [7, 7, 7], [1, 20, 2], [9, 1, 1, 30], [6, 1, 8]])
@pytest.mark.parametrize("own_bos", [False, True])
def test_packed_contexts_are_full_and_say_what_is_in_them(lengths, bos, own_bos):
    packer, contexts, stream = Packer(Cutting(8, bos, packing=True), BOS_ID), [], []
    for index, n in enumerate(lengths):
        tokens = tokenized(n, 100 * (index + 1), own_bos=own_bos and n > 0)
        document = Document(f"d{index}", "d", tokens.text, metadata={"n": index})
        contexts += packer.add(document, tokens, index)
        stream += [(index, int(i), o) for o, i in enumerate(tokens.token_ids)]
    contexts += packer.rest()
    rows = rows_of(contexts, packed=True)
    assert all(row["n_tokens"] == 8 for row in rows[:-1]) or bos == "document"
    assert all(row["n_tokens"] >= 7 for row in rows[:-1])
    found = []
    for row in rows:
        check_text(row)
        assert row["document"] is None
        stops = [*(d["position"] for d in row["documents"][1:]), row["n_tokens"]]
        assert row["documents"][0]["position"] == 0
        if bos == "each":
            assert row["token_ids"][0] == BOS_ID
        text_at = 0
        for d, stop in zip(row["documents"], stops, strict=True):
            index = d["document_index"]
            assert (d["document"], json.loads(d["metadata"])) == (f"d{index}", {"n": index})
            ids = row["token_ids"][d["position"] : stop]
            added = ids[0] == BOS_ID and not (own_bos and d["part"] == 0)
            assert added == (bos != "none" and not (own_bos and d["part"] == 0) and (
                d["position"] == 0 if bos == "each" else d["part"] == 0))  # fmt: skip
            found += [(index, i) for i in ids[added:]]
            n_chars = d["char_end"] - d["char_start"]
            whole = tokenized(lengths[index], own_bos=own_bos).text
            assert (
                row["text"][text_at : text_at + n_chars] == whole[d["char_start"] : d["char_end"]]
            )
            text_at += n_chars
        assert text_at == len(row["text"])
    assert found == [(index, i) for index, i, _ in stream]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "all"}, "there are each, document, none"),
        ({"stride": 0}, "stride=0 .* give 1 to 7"),
        ({"stride": 8}, "stride=8 .* has room for 7 .* give 1 to 7"),
        ({"stride": 4, "packing": True}, "stride=4 was asked for with packing"),
        ({"context_length": 1}, "give 2 or more"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Cutting(**{"context_length": 8, **options})
    Cutting(8, "none", 8)


def add(tmp_path, records, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    lake = scopelake.create(tmp_path / "lake")
    options = {"context_length": 32, "shard_contexts": 2, **options}
    return lake, lake.add_corpus("text", path, tokenizer=tiny.MODEL_NAME, **options)


TEXTS = [f"def depth_{i}(lake):\n    return lake.depth * {i}\n" for i in range(12)]


@pytest.mark.parametrize(
    ("options", "n_bos"),
    [({}, "each"), ({"bos": "none"}, "none"), ({"bos": "document", "packing": True}, "document"),
     ({"packing": True}, "each"), ({"stride": 5}, "each")],
)  # fmt: skip
def test_statistics_leave_out_what_is_bos_and_no_more(tmp_path, options, n_bos):
    lake, added = add(tmp_path, [{"text": t} for t in TEXTS], **options)
    sae = tiny.coders_path() / "resid_post_all/layer_0_width_1024_l0_small"
    lake.ingest("text", model=tiny.MODEL_NAME, device="cpu", saes=[sae])
    row = lake.sql("SELECT * FROM corpora").to_pylist()[0]
    expected = {"each": added.n_contexts, "none": 0, "document": len(TEXTS)}[n_bos]
    assert row["n_bos"] == expected
    counted = lake.sql("SELECT count(*) FILTER (kind <> 'bos') AS n FROM tokens")["n"][0].as_py()
    assert counted == row["n_tokens"] - row["n_bos"]
    densities = lake.sql("""
        SELECT feature, firings, density, n_tokens, (SELECT count(*) FROM codes c
            WHERE c.feature = f.feature AND kind <> 'bos') AS n FROM features f WHERE firings > 0
    """).to_pylist()
    assert densities
    for one in densities:
        assert (one["firings"], one["n_tokens"]) == (one["n"], counted)
        assert one["density"] == pytest.approx(one["n"] / counted)
    said = (row["bos"], row["stride"], row["packing"], row["duplicates"], row["n_duplicates"])
    assert said == (options.get("bos", "each"), options.get("stride"),
                    options.get("packing", False), "keep", 0)  # fmt: skip


def test_queries_find_the_document_of_a_token_in_a_packed_context(tmp_path):
    records = [{"text": t, "id": f"doc{i}", "lang": "py" if i % 2 else "js"}
               for i, t in enumerate(TEXTS)]  # fmt: skip
    lake, _ = add(tmp_path, records, packing=True)
    sae = tiny.coders_path() / "resid_post_all/layer_3_width_1024_l0_small"
    lake.ingest("text", model=tiny.MODEL_NAME, device="cpu", saes=[sae])
    tokens = lake.sql("SELECT * FROM tokens ORDER BY context, position").to_pylist()
    spelt = {}
    for token in tokens:
        if token["kind"] == "content":
            spelt[token["document"]] = spelt.get(token["document"], "") + token["token"]
    assert spelt == {f"doc{i}": text for i, text in enumerate(TEXTS)}
    of = {(t["context"], t["position"]): t["document"] for t in tokens}
    feature = lake.sql("SELECT feature FROM features ORDER BY firings DESC, feature LIMIT 1")
    feature = feature["feature"][0].as_py()
    top = lake.top_contexts(feature, k=50).table.to_pylist()
    assert len({row["document"] for row in top}) > 2
    assert all(row["document"] == of[row["context"], row["position"]] for row in top)
    for where in ("document = 'doc3'", "document_index = 3", "metadata->>'lang' = 'py'"):
        rows = lake.top_contexts(feature, k=50, where=where).table.to_pylist()
        odd = {f"doc{i}" for i in range(1, 12, 2)}
        assert rows
        assert {row["document"] for row in rows} <= ({"doc3"} if "3" in where else odd)
    assert lake.verify().is_whole


@pytest.mark.parametrize("packing", [False, True])
def test_duplicates_are_counted_and_dropped_if_asked(tmp_path, packing):
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0] + " ", TEXTS[1]]
    records = [{"text": t, "lang": i} for i, t in enumerate(texts)]
    (tmp_path / "keep").mkdir()
    _, kept = add(tmp_path / "keep", records, packing=packing)
    assert (kept.n_documents, kept.n_duplicates) == (5, 2)
    lake, dropped = add(tmp_path, records, packing=packing, duplicates="drop")
    assert (dropped.n_documents, dropped.n_duplicates) == (3, 2)
    ids = lake.sql("SELECT DISTINCT document AS d FROM tokens ORDER BY ALL")["d"].to_pylist()
    assert ids == ["a:1", "a:2", "a:4"]
    row = lake.sql("SELECT n_documents, n_duplicates, duplicates FROM corpora").to_pylist()
    assert row == [{"n_documents": 3, "n_duplicates": 2, "duplicates": "drop"}]


def test_chats_are_duplicates_by_their_messages(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    same = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    _, added = add(tmp_path, [{"messages": chat}, {"conversations": same}], chat=True)
    assert added.n_duplicates == 1


def test_chats_without_bos_and_duplicates_of_no_kind_are_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="begins each chat with BOS"):
        add(tmp_path, [{"messages": [{"role": "user", "content": "x"}]}], chat=True, bos="none")
    lake = scopelake.open(tmp_path / "lake")
    with pytest.raises(InvalidArgumentError, match="duplicates='x' .* give keep or drop"):
        lake.add_corpus("a", tmp_path, tokenizer=tiny.MODEL_NAME, duplicates="x")
    (tmp_path / "e.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(CorpusSourceError, match="hold no text"):
        lake.add_corpus("a", tmp_path / "e.jsonl", tokenizer=tiny.MODEL_NAME)
    assert scopelake.open(lake.path).snapshot == 1
