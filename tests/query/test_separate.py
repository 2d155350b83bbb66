"""Features that separate spans, against a count over every firing."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from scopelake.cli import main
from scopelake.errors import (
    CorpusNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    SaeNotFoundError,
)
from scopelake.lake import Lake

SAE = "gs-2/resid_post/layer_1_width_12"


@pytest.fixture
def lake(counted):
    return Lake(counted.store, counted.snapshot, pinned=False)


def expected(built, spans):
    """By SAE and feature: hits, firings, spans."""
    inside = {}
    for number, (corpus, context, start, stop) in enumerate(spans):
        inside |= {(corpus, context, p): number for p in range(start, stop)}
    corpora = {span[0] for span in spans}
    hits, firings, of = defaultdict(int), defaultdict(int), defaultdict(set)
    for row in built.rows:
        if row.corpus not in corpora or row.kind == "bos":
            continue
        key = (row.sae, row.feature)
        firings[key] += 1
        if (number := inside.get((row.corpus, row.context, row.position))) is not None:
            hits[key] += 1
            of[key].add(number)
    return {key: (hits[key], firings[key], len(of[key])) for key in hits}


def table(spans):
    corpus, context, start, stop = zip(*spans, strict=True)
    return pa.table({"corpus": corpus, "context": context, "start": start, "stop": stop})


def random_spans(built, seed, corpora):
    rng, spans = np.random.default_rng(seed), []
    for (corpus, context), held in built.contexts.items():
        if corpus in corpora and rng.random() < 0.3:
            start = int(rng.integers(0, len(held.pieces)))
            stop = int(rng.integers(start + 1, len(held.pieces) + 1))
            spans.append((corpus, context, start, stop))
            if stop < len(held.pieces):
                spans.append((corpus, context, stop, len(held.pieces)))
    return [spans[i] for i in rng.permutation(len(spans))]


@pytest.mark.parametrize("corpora", [["plain"], ["chats"], ["plain", "chats"]])
@pytest.mark.parametrize("few", [0, 1000])
def test_every_number_is_counted(counted, lake, corpora, few, monkeypatch):
    monkeypatch.setattr("scopelake.query.separate._FEW", few)
    spans = random_spans(counted, len(corpora), corpora)
    found = lake.separate(table(spans), k=None)
    counts = expected(counted, spans)
    rows = found.table.to_pylist()
    assert {(r["sae"], r["feature"]): (r["hits"], r["firings"], r["spans"]) for r in rows} == counts
    for row in rows:
        assert row["precision"] == pytest.approx(row["hits"] / row["firings"], rel=1e-12)
        assert row["recall"] == pytest.approx(row["spans"] / len(spans), rel=1e-12)
        both = row["precision"] + row["recall"]
        assert row["f1"] == pytest.approx(2 * row["precision"] * row["recall"] / both, rel=1e-12)
    order = [(-r["f1"], r["sae"], r["feature"]) for r in rows]
    assert order == sorted(order)
    assert found.n_spans == len(spans)
    assert found.n_tokens == sum(stop - start for _, _, start, stop in spans)
    assert found.corpora == tuple(sorted(corpora))


def test_one_sae_a_ranking_and_the_least_spans(counted, lake):
    spans = random_spans(counted, 3, ["plain"])
    counts = {key: n for key, n in expected(counted, spans).items() if key[0] == SAE}
    found = lake.separate(table(spans), layer=1, by="precision", k=3, least=40).table.to_pylist()
    kept = [(-hits / n, feature) for (_, feature), (hits, n, of) in counts.items() if of >= 40]
    best = sorted((p, -2 * -p * (counts[SAE, f][2] / len(spans)) /
                   (-p + counts[SAE, f][2] / len(spans)), f) for p, f in kept)  # fmt: skip
    assert [row["feature"] for row in found] == [f for _, _, f in best[:3]]
    assert {row["sae"] for row in found} == {SAE}


def test_matches_are_spans(counted, lake):
    found = lake.search("cat", k=None)
    spans = [tuple(r[n] for n in ("corpus", "context", "start", "stop"))
             for r in found.table.to_pylist()]  # fmt: skip
    assert lake.separate(found, k=None).table.equals(lake.separate(table(spans), k=None).table)
    assert lake.separate(table(spans).to_pandas(), k=4).table.equals(
        lake.separate(found, k=4).table
    )
    with pytest.raises(InvalidArgumentError, match="5 matches of 'cat'.*search with k=None"):
        lake.separate(lake.search("cat", k=5))


def test_spans_without_a_firing_have_no_features(counted, lake):
    lone = next(
        (corpus, context, p, p + 1)
        for (corpus, context), held in counted.contexts.items()
        for p in range(1, len(held.pieces))
        if not any((r.corpus, r.context, r.position) == (corpus, context, p) for r in counted.rows)
    )
    found = lake.separate(table([lone]))
    assert found.table.num_rows == 0
    assert "nothing fires in them" in found.to_text()
    assert found._repr_html_()


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        (pa.table({"corpus": ["plain"], "context": [0]}), "without start, stop"),
        (pa.table({"corpus": [1], "context": ["x"], "start": [0], "stop": [1]}), "whole numbers"),
        (table([("plain", 0, 0, 1)]).slice(0, 0), "no span was given"),
        (table([("plain", 0, 0, 1), ("plain", 0, None, 2)]), "with nulls"),
        (table([("plain", 0, 0, 2), ("plain", 0, 1, 2)]), "share a token"),
        (table([("plain", 0, 1, 1)]), "one or more"),
        (table([("plain", 0, -1, 1)]), "give tokens that are there"),
        (table([("plain", 0, 0, 99)]), "it has"),
        (table([("plain", 4000, 0, 1)]), "there is no such context"),
        ("text", "given as str"),
    ],
)
def test_what_is_no_span_is_refused(lake, spans, says):
    with pytest.raises(InvalidArgumentError, match=says):
        lake.separate(spans)


def test_numbers_and_names_that_are_none_are_refused(lake):
    spans = table([("plain", 0, 0, 1)])
    for wrong in ({"k": 0}, {"least": 0}, {"by": "best"}):
        with pytest.raises(InvalidArgumentError):
            lake.separate(spans, **wrong)
    with pytest.raises(CorpusNotFoundError):
        lake.separate(table([("no", 0, 0, 1)]))
    with pytest.raises(SaeNotFoundError):
        lake.separate(spans, sae="no")


def test_an_sae_without_statistics_is_left_out_or_refused(built):
    lake = Lake(built.store, built.snapshot, pinned=False)
    spans = table([("plain", 0, 0, 1), ("plain", 3, 0, 1)])
    found = lake.separate(spans, k=None)
    assert {row["sae"] for row in found.table.to_pylist()} <= {SAE}
    assert "without 2 SAEs" in found.note
    with pytest.raises(NotIngestedError, match="no statistics"):
        lake.separate(spans, layer=2, site="mlp_out")


def test_the_verb(counted, lake, capsys):
    path = str(counted.store.root.path)
    assert main(["separate", path, "cat", "--corpus", "plain", "-k", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    spans = lake.search("cat", corpus="plain", k=None)
    assert rows == lake.separate(spans, k=3).table.to_pylist()
    assert main(["separate", path, "cat", "--by", "recall", "--layer", "1"]) == 0
    assert "features by recall" in capsys.readouterr().out
    assert main(["separate", path, "no such text"]) == 2
    assert "'no such text' were asked for; it is nowhere" in capsys.readouterr().err


def test_matches_in_one_token_are_one_span(counted, lake):
    shared = lake.search("(?s).", regex=True, corpus="chats", k=None)
    merged = lake.separate(shared, k=None)
    tokens = {(r["context"], p) for r in shared.table.to_pylist()
              for p in range(r["start"], r["stop"])}  # fmt: skip
    assert merged.n_tokens == len(tokens)
    assert merged.n_spans < shared.n_matches
    hits = sum(r.corpus == "chats" and r.kind != "bos" and (r.context, r.position) in tokens
               for r in counted.rows)  # fmt: skip
    assert sum(row["hits"] for row in merged.table.to_pylist()) == hits
