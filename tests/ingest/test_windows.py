"""Cutting documents into contexts: nothing lost, nothing twice, every window starts with BOS."""

import json

import numpy as np
import pytest

from scopelake.ingest.documents import Document
from scopelake.ingest.tokens import BOS, CONTENT, TokenizedText
from scopelake.ingest.windows import Cutting, split, to_table

BOS_ID = 2


def tokenized(n_tokens, *, own_bos=False):
    """One character a token: token i covers character i of the text; a BOS of its own covers 5."""
    ids = np.arange(100, 100 + n_tokens, dtype=np.int32)
    kinds = np.full(n_tokens, CONTENT, dtype=np.int8)
    text, starts = "x" * n_tokens, np.arange(n_tokens, dtype=np.int32)
    if own_bos:
        ids, kinds = np.r_[np.int32(BOS_ID), ids], np.r_[np.int8(BOS), kinds]
        text, starts = "<bos>" + text, np.r_[np.int32(0), starts + 5].astype(np.int32)
    zeros = np.zeros(len(ids), dtype=np.int32)
    return TokenizedText(text, ids, starts, zeros.astype(np.int8), zeros, kinds)


@pytest.mark.parametrize("own_bos", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 2, 7, 8, 63, 64, 1023])
@pytest.mark.parametrize("context_length", [2, 8, 64])
def test_windows_cover_the_document_once(n_tokens, context_length, own_bos):
    tokens = tokenized(n_tokens, own_bos=own_bos)
    document = Document("d", "d.txt", tokens.text)
    contexts = split(document, tokens, Cutting(context_length), bos_id=BOS_ID)
    body = context_length - 1
    assert len(contexts) == -(-n_tokens // body)
    table = to_table(contexts, "c", 5, bos_id=BOS_ID)
    assert table["context"].to_pylist() == list(range(5, 5 + len(contexts)))
    ids, text, end = [], "", 0
    for part, row in enumerate(table.to_pylist()):
        assert row["part"] == part
        assert row["document_index"] == 0
        assert row["token_ids"][0] == BOS_ID
        assert row["kinds"] == [BOS] + [CONTENT] * (row["n_tokens"] - 1)
        assert row["n_tokens"] == len(row["token_ids"]) <= context_length
        assert row["char_start"] == end
        assert row["text"] == tokens.text[row["char_start"] : row["char_end"]]
        pieces = np.split(list(row["text"]), row["token_starts"][1:])
        assert all(len(piece) == 1 for piece in pieces[1:])
        ids += row["token_ids"][1:]
        text += row["text"]
        end = row["char_end"]
    assert ids == list(range(100, 100 + n_tokens))
    assert text == tokens.text


def test_a_document_of_no_tokens_has_no_window():
    tokens = tokenized(0)
    document = Document("d", "d.txt", "")
    assert split(document, tokens, Cutting(8), bos_id=BOS_ID) == []


def test_metadata_is_strict_json():
    metadata = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": float("-inf")}, "e": None}
    document = Document("d", "d.txt", "x", metadata=metadata)
    contexts = split(document, tokenized(1), Cutting(8), bos_id=BOS_ID)
    (stored,) = to_table(contexts, "c", 0, bos_id=BOS_ID)["metadata"].to_pylist()
    found = json.loads(stored, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, None], "c": {"d": None}, "e": None}
