"""A feature's card against sums over every firing and every token."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from scopelake.errors import CorpusNotFoundError, MissingDependencyError
from scopelake.names import KINDS, ROLES
from scopelake.query.card_source import N_PEAKS, CardSource, _peaks
from scopelake.query.card_statistics import BIN_ERROR
from scopelake.query.card_text import bars
from scopelake.query.connect import connect
from scopelake.query.resolve import Partial, SaeInfo
from scopelake.query.sql import sql
from scopelake.query.token_counts import by_lengths, by_tokens
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.parquet import write_parquet
from scopelake.store.schema import file_schema
from scopelake.store.writer import write_neighbors

RARE, DENSE, SILENT = 3, 0, 11
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}


def no_texts(tokenizer, digest, ids):
    return None


def source(built, decode=no_texts, **more):
    return CardSource(built.connection, built.store, built.snapshot, decode, **more)


def expected(activations, n_tokens):
    """The statistics of some activations, by numpy."""
    values = np.array(activations, np.float32)
    histogram = [0] * 32
    for value in values.tolist():
        histogram[int(np.clip(np.floor(np.log2(value)) + 8, 0, 31))] += 1
    found = {"firings": len(values), "n_tokens": n_tokens, "density": len(values) / n_tokens,
             "histogram": histogram}  # fmt: skip
    if len(values):
        wide = values.astype(np.float64)
        found |= {"mean": wide.mean(), "max": wide.max()}
        found |= {name: np.quantile(wide, q) for name, q in QUANTILES.items()}
    return found


def check(found, wanted, *, error=0.0):
    for name, value in wanted.items():
        if name in QUANTILES:
            assert found[name] == pytest.approx(value, rel=error + 1e-6), name
        elif name == "histogram":
            assert list(found[name]) == value
        else:
            assert found[name] == pytest.approx(value, rel=1e-6), name
    if not wanted["firings"]:
        assert [found[n] for n in ("mean", "max", *QUANTILES)] == [None] * 6


def fired(built, sae, feature, corpora):
    return [
        r
        for r in built.rows
        if r.sae == sae.name and r.feature == feature and r.kind != "bos" and r.corpus in corpora
    ]


@pytest.mark.parametrize("exact_firings", [0, 10**9])
@pytest.mark.parametrize("feature", [RARE, DENSE, SILENT])
@pytest.mark.parametrize("corpus", [None, "plain", "chats"])
def test_statistics_agree_with_sums_over_all_firings(counted, feature, corpus, exact_firings):
    sae, corpora = counted.sae(), ["chats", "plain"] if corpus is None else [corpus]
    card = source(counted, exact_firings=exact_firings).card(sae, feature, corpus=corpus)
    mine = fired(counted, sae, feature, corpora)
    # Features that never fire are never too many; those of one corpus are in its statistics.
    binned = BIN_ERROR if exact_firings == 0 and mine else 0.0
    assert card.corpora == tuple(corpora)
    activations = [r.activation for r in mine]
    error = binned if corpus is None else 0.0
    # The builder says that each corpus has 1,000 tokens.
    check(vars(card.total), expected(activations, 1000 * len(corpora)), error=error)
    assert card.total.quantile_error == (error if mine else None)
    for row in card.by_corpus.to_pylist():
        there = [r.activation for r in mine if r.corpus == row["corpus"]]
        check(row, expected(there, 1000))
        assert row["state"] == ""
    check_roles(counted, card, mine, corpora, binned)
    check_positions(counted, card, mine, corpora)
    assert card.notes == (
        "the tokens that it promotes were not computed",
        "nearest features were not computed (add_neighbors)",
    )


def check_roles(built, card, mine, corpora, error):
    contexts = [c for c in built.contexts.values() if c.corpus in corpora]
    there = Counter(
        (ROLES[role], KINDS[kind])
        for c in contexts for role, kind in zip(c.roles, c.kinds, strict=True)
        if KINDS[kind] != "bos"
    )  # fmt: skip
    rows = card.by_role.to_pylist()
    assert {(r["role"], r["kind"]): r["n_tokens"] for r in rows} == there
    for row in rows:
        activations = [
            r.activation for r in mine
            if r.kind == row["kind"]
            and ROLES[built.contexts[r.corpus, r.context].roles[r.position]] == row["role"]
        ]  # fmt: skip
        check(row, expected(activations, row["n_tokens"]), error=error)


def check_positions(built, card, mine, corpora):
    contexts = [c for c in built.contexts.values() if c.corpus in corpora]
    there = Counter(p for c in contexts for p, kind in enumerate(c.kinds) if KINDS[kind] != "bos")
    firings = Counter(r.position for r in mine)
    rows = card.by_position.to_pylist()
    assert len(rows) == max(len(c.kinds) for c in contexts)
    for row in rows:
        p = row["position"]
        assert (row["firings"], row["n_tokens"]) == (firings[p], there[p])
        assert row["density"] == (None if not there[p] else firings[p] / there[p])


def test_lengths_of_contexts_tell_what_their_tokens_do(built):
    """The shortcut for corpora of text, against reading every token."""
    slow = by_tokens(built.connection, "plain")
    np.testing.assert_array_equal(by_lengths(built.connection, "plain", 400), slow)
    assert slow.sum() == sum(len(c.kinds) for c in built.contexts.values() if c.corpus == "plain")
    assert by_tokens(built.connection, "none").shape == (0, len(ROLES), len(KINDS))
    assert by_lengths(built.connection, "none", 0).shape == (0, len(ROLES), len(KINDS))


def test_a_corpus_without_statistics_is_said_and_not_in_the_total(built):
    sae = built.sae()
    card = source(built).card(sae, RARE)
    assert card.corpora == ("plain",)
    assert "corpus chats: incomplete, its statistics are not written" in card.notes
    plain = [r.activation for r in fired(built, sae, RARE, ["plain"])]
    check(vars(card.total), expected(plain, 1000))
    (row,) = (r for r in card.by_corpus.to_pylist() if r["corpus"] == "chats")
    chats = [r.activation for r in fired(built, sae, RARE, ["chats"])]
    assert (row["firings"], row["n_tokens"], row["density"]) == (len(chats), None, None)
    assert row["p50"] == pytest.approx(np.quantile(chats, 0.5))
    assert sum(r["firings"] for r in card.by_role.to_pylist()) == len(plain)
    nothing = source(built).card(built.sae(2), RARE)
    assert (nothing.total, nothing.corpora) == (None, ())
    assert "?" not in nothing.to_text().split("firings")[0]
    assert nothing._repr_html_()
    with pytest.raises(CorpusNotFoundError, match="chats, plain"):
        source(built).card(sae, RARE, corpus="x")


@pytest.fixture(scope="module")
def rich(counted, tmp_path_factory):
    """The lake with neighbors and labels of some features."""
    import shutil
    from dataclasses import replace

    sae = counted.sae()
    path = shutil.copytree(counted.store.root.url, tmp_path_factory.mktemp("rich") / "lake")
    store = LakeStore.open(path)
    with Writer(store) as writer:
        receipts = []
        for other, cosines in ((sae.name, [0.25, 0.125]), ("b/x", [0.5, 0.25]), ("a/x", [0.5])):
            rows = [(RARE, rank, rank + 7, cosine) for rank, cosine in enumerate(cosines)]
            columns = [pa.array(column) for column in zip(*rows, strict=True)]
            table = pa.table(dict(zip(file_schema("neighbors").names, columns, strict=True)))
            receipts.append(write_neighbors(store.root, table, sae.name, other, "neighbors 2 a b"))
        labels = [{"feature": f, "label": text, "source": who}
                  for f, text, who in ((RARE, "<b>dates</b>\x1b[31m", "z"), (RARE, "cats", "a"),
                                       (DENSE, "dogs", "a"))]  # fmt: skip
        table = pa.Table.from_pylist(labels, schema=file_schema("labels"))
        receipts.append(write_parquet(store.root, "labels", table, {"sae": sae.name}, run="r"))
        writer.commit(receipts, transaction="rich", reason="rich")
    connection = connect(store, store.snapshot())
    yield replace(counted, store=store, snapshot=store.snapshot(), connection=connection)
    connection.close()


def test_neighbors_are_the_nearest_of_its_own_and_of_others(rich):
    card = source(rich).card(rich.sae(), RARE, k=2)
    name = rich.sae().name
    assert [tuple(r.values()) for r in card.neighbors.to_pylist()] == [
        (name, 7, 0, 0.25), (name, 8, 1, 0.125), ("a/x", 7, 0, 0.5), ("b/x", 7, 0, 0.5),
    ]  # fmt: skip
    assert source(rich).card(rich.sae(), RARE, k=1).neighbors.num_rows == 2
    assert source(rich).card(rich.sae(), DENSE).neighbors.num_rows == 0
    assert not any("nearest" in note for note in card.notes)


def test_labels_facts_and_peaks(rich):
    card = source(rich).card(rich.sae(), RARE)
    assert card.labels["label"].to_pylist() == ["cats", "<b>dates</b>\x1b[31m"]
    assert (card.coder.layer, card.coder.site, card.coder.width) == (1, "resid_post", 12)
    assert card.peaks.table.num_rows == 5
    assert card.coactive is None
    assert source(rich).card(rich.sae(), RARE, with_coactive=True, k=3).coactive.table.num_rows == 3


def test_explain_gives_statements_that_run(rich):
    statements = source(rich).explain(rich.sae(), RARE).strip().split(";\n")
    assert len(statements) == 5
    for statement in statements:
        assert sql(rich.connection, statement.rstrip(";")).num_rows > 0


def test_text_and_html_show_all_of_it_and_only_text(rich):
    card = source(rich).card(rich.sae(), RARE, with_coactive=True)
    text = card.to_text()
    for part in ("feature 3 of", "label: cats", "by role", "density by position", "fires with",
                 "nearest by decoder cosine", "strongest", "a/x"):  # fmt: skip
        assert part in text
    assert "\x1b" not in text
    assert "\x1b[1m" in card.to_text(color=True)
    assert str(card) == text
    html = card._repr_html_()
    assert "<b>dates" not in html
    assert "&lt;b&gt;dates" in html
    assert "\x1b" not in html
    assert html.count("<svg") == 2
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', html)]
    assert max(heights) == 62.0


def test_a_role_on_which_a_feature_is_silent_has_no_strength(rich):
    for feature, fires in ((RARE, True), (SILENT, False)):
        card = source(rich).card(rich.sae(), feature)
        firings = card.by_role["firings"].to_pylist()
        assert [n > 0 for n in firings] == [fires] * len(firings)
        lines = card.to_text().split("by role\n")[1].splitlines()[: len(firings)]
        assert ["mean" in line for line in lines] == [fires] * len(firings)


def test_a_silent_feature_shows_itself(rich):
    card = source(rich).card(rich.sae(), SILENT, with_coactive=True)
    assert "0 firings on 2,000 tokens (0 %)" in card.to_text()
    assert "never fires" not in card.to_text().split("strongest")[0]
    assert "<svg" not in card._repr_html_()
    assert card.coactive.table.num_rows == 0


def test_it_is_strict_json(rich):
    values = source(rich).card(rich.sae(), RARE, with_coactive=True).to_dict()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again["feature"] == RARE
    assert again["total"]["firings"] == values["total"]["firings"]
    assert again["neighbors"][0]["cosine"] == 0.25
    assert len(again["coactive"]) == 10


@pytest.mark.parametrize(("values", "shown"), [
    ([], ""), ([0.0, 0.0], "  "), ([8, 4, 1, 0], "█▄▁ "), ([1, 1e-9], "█▁"),
])  # fmt: skip
def test_bars(values, shown):
    assert bars(values) == shown


def test_a_plot_has_both_pictures(rich, tmp_path):
    pytest.importorskip("matplotlib", reason="it is optional: scopelake[plot]")
    card = source(rich).card(rich.sae(), DENSE)
    figure = card.plot()
    left, right = figure.axes
    assert sum(bar.get_height() for bar in left.patches) == card.total.firings
    assert len(right.patches) == card.by_position.num_rows
    assert source(rich).card(rich.sae(), SILENT).plot().axes
    figure.savefig(tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_says_what_to_install(rich, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'scopelake\[plot\]'"):
        source(rich).card(rich.sae(), DENSE).plot()


def test_of_few_published_examples_a_card_shows_what_there_is():
    sae = SaeInfo("s", "resid_post", (0,), 8, {"published": Partial(3)})
    assert _peaks(sae, 1, None).k == 3
    assert _peaks(sae, 1, "own").k == N_PEAKS
