"""top_contexts against a brute-force oracle, from both tables that can answer it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scopelake.errors import CorpusNotFoundError, InvalidArgumentError, QueryError
from scopelake.names import CONTEXT_RANKINGS, KINDS, ROLES
from scopelake.query import contexts
from scopelake.query.context_rows import contexts_html, contexts_text
from scopelake.query.contexts import TopContexts
from scopelake.query.rank_contexts import Ranking
from scopelake.query.sql import sql

Keep = Callable[[Any, Any], bool]
WHERES: dict[str | None, Keep] = {
    None: lambda row, context: True,
    "true": lambda row, context: True,
    "role = 'user' -- a comment": lambda r, c: ROLES[c.roles[r.position]] == "user",
    "kind IN ('template', 'bos') AND turn < 2": lambda r, c: (
        KINDS[c.kinds[r.position]] in ("template", "bos") and c.turns[r.position] < 2
    ),
    "token = '日本' OR document = 'doc-3'": lambda r, c: (
        c.shown[r.position] == "日本" or c.document == "doc-3"
    ),
    "metadata->>'lang' = 'l1' AND activation < 2": lambda r, c: (
        '"l1"' in c.metadata and r.activation < 2
    ),
    "token = '<bos>'": lambda r, c: c.shown[r.position] == "<bos>",
    "context IN (SELECT context FROM contexts WHERE part = 1)": lambda r, c: c.context % 2 == 1,
}


def top_contexts(connection, sae, feature, *, window=16, **asked) -> TopContexts:
    return contexts.top_contexts(connection, Ranking(sae, feature, **asked), window=window)


def explain_top_contexts(sae, feature, **asked) -> str:
    return Ranking(sae, feature, **asked).sql()[0]


VALUES: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "mean": lambda a: math.fsum(a) / len(a),
    "sum": math.fsum,
    "count": len,
}


def oracle(built, sae, feature, *, k, window, corpus, where, bos, by="max", distinct=False):
    """The answer by sorting every firing there is."""
    mine = [
        r for r in built.rows
        if r.sae == sae.name and r.feature == feature and (bos or r.kind != "bos")
    ]  # fmt: skip
    fired = {(r.corpus, r.context, r.position): r.activation for r in mine}
    counted: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for r in mine:
        context = built.contexts[r.corpus, r.context]
        if corpus in (None, r.corpus) and WHERES[where](r, context):
            counted.setdefault((r.corpus, r.context), []).append((-r.activation, r.position))
    ranked = sorted(
        (-VALUES[by]([-a for a, _ in firings]), *key, *min(firings))
        for key, firings in counted.items()
    )
    if distinct:
        first: dict[tuple[str, str], tuple] = {}
        for row in ranked:
            first.setdefault((row[1], built.contexts[row[1:3]].document), row)
        ranked = list(first.values())
    rows = []
    for rank, (value, name, number, negative, position) in enumerate(ranked[:k]):
        context = built.contexts[name, number]
        start, stop = 0, len(context.pieces)
        if window is not None:
            start, stop = max(0, position - window), min(stop, position + window + 1)
        rows.append({
            "rank": rank, "corpus": name, "context": number, "position": position,
            "activation": -negative, "value": pytest.approx(-value, rel=1e-12),
            "document": context.document, "start": start, "stop": stop,
            "tokens": context.shown[start:stop],
            "activations": [fired.get((name, number, p), 0.0) for p in range(start, stop)],
            "text": "".join(context.shown[start:stop]),
        })  # fmt: skip
    return rows


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    feature=st.integers(0, 11),
    k=st.sampled_from([1, 2, 20, 256, 257, 5000]),
    window=st.sampled_from([0, 1, 4, 100, None]),
    corpus=st.sampled_from([None, "plain", "chats"]),
    where=st.sampled_from(list(WHERES)),
    bos=st.booleans(),
    by=st.sampled_from(CONTEXT_RANKINGS),
    distinct=st.booleans(),
    place=st.sampled_from([(1, "resid_post"), (2, "mlp_out")]),
)
def test_it_agrees_with_brute_force(
    built, feature, k, window, corpus, where, bos, by, distinct, place
):  # fmt: skip
    asked = {"k": k, "window": window, "corpus": corpus, "where": where, "bos": bos}
    asked |= {"by": by, "distinct": distinct}
    sae = built.sae(*place)
    found = top_contexts(built.connection, sae, feature, **asked)
    assert found.table.to_pylist() == oracle(built, sae, feature, **asked)


@pytest.mark.parametrize("k", [1, 20, 256])
@pytest.mark.parametrize("feature", [0, 3])
def test_peaks_and_postings_give_the_same_answer(built, feature, k):
    shallow = top_contexts(built.connection, built.sae(), feature, k=k)
    deep = top_contexts(built.connection, built.sae(), feature, k=k, where="true")
    deeper = top_contexts(built.connection, built.sae(), feature, k=100_000)
    assert shallow.table == deep.table == deeper.table.slice(0, k)
    documents = top_contexts(built.connection, built.sae(), feature, k=k, distinct=True)
    all_firings = {"k": k, "distinct": True, "where": "true"}
    assert (
        documents.table == top_contexts(built.connection, built.sae(), feature, **all_firings).table
    )
    assert "peaks" in explain_top_contexts(built.sae(), feature, k=k)
    assert "postings" in explain_top_contexts(built.sae(), feature, k=257)


@pytest.mark.parametrize(
    "asked",
    [
        {"k": 5},
        {"k": 300},
        {"k": 5, "where": "role = 'user'"},
        {"k": 5, "by": "sum", "where": "role = 'user'"},
        {"k": 5, "distinct": True},
        {"k": 300, "distinct": True, "by": "count"},
    ],
)
def test_explain_gives_sql_that_ranks_the_same(built, asked):
    query = explain_top_contexts(built.sae(), 0, corpus="chats", **asked)
    found = top_contexts(built.connection, built.sae(), 0, corpus="chats", **asked)
    ranked = sql(built.connection, query)
    assert ranked.num_rows > 1
    assert ranked == found.table.select(ranked.column_names)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"k": -3}, "k=-3"),
        ({"window": -1}, "window=-1"),
        ({"by": "loudness"}, "by 'loudness' was asked for; there are max, mean, sum, count"),
    ],
)
def test_arguments_out_of_range_are_refused(built, asked, says):
    with pytest.raises(InvalidArgumentError, match=says):
        top_contexts(built.connection, built.sae(), 0, **asked)


def test_an_unknown_corpus_is_refused(built):
    with pytest.raises(CorpusNotFoundError, match="chats, plain"):
        top_contexts(built.connection, built.sae(), 0, corpus="plane")


@pytest.mark.parametrize(
    "where",
    [
        "",
        "role =",
        "true) OR (true",
        "true) UNION SELECT 1, 2, 3, 4 --",
        "true; DROP VIEW contexts",
        "role = 'user', 1",
        "true ORDER BY 1",
        "x FROM contexts",
        "role = ?",
        "role = $1",
        "role = $name",
        "no_such_column = 1",
        "max(activation) > 1",
        "read_text('/etc/hostname') = ''",
        "context IN (SELECT 1 FROM read_text('/etc/hostname'))",
        "'text that is no predicate'",
    ],
)
def test_a_where_that_is_no_predicate_is_refused(built, where):
    with pytest.raises(QueryError) as caught:
        top_contexts(built.connection, built.sae(), 0, where=where)
    assert "\n" not in str(caught.value)
    assert top_contexts(built.connection, built.sae(), 0, k=1).table.num_rows == 1


@pytest.mark.parametrize("asked", [{}, {"k": 1000}, {"where": "true"}])
def test_a_silent_feature_has_an_empty_table_that_says_so(built, asked):
    silent = top_contexts(built.connection, built.sae(), 11, **asked)
    loud = top_contexts(built.connection, built.sae(), 0, **asked)
    assert silent.table.num_rows == 0
    assert silent.table.schema == loud.table.schema
    assert "feature 11 of" in str(silent)
    assert "never fires" in str(silent)
    assert "never fires" in silent._repr_html_()
    assert list(silent.to_pandas().columns) == silent.table.column_names


def test_text_marks_the_firing_tokens_and_nothing_else(built):
    found = top_contexts(built.connection, built.sae(), 0, k=200)
    row = found.table.to_pylist()[0]
    lines = found.to_text().split("\n")
    assert len(lines) == 1 + 2 * 200
    assert lines[2].count("[[") == sum(a > 0 for a in row["activations"])
    assert "\x1b" not in found.to_text()
    assert "↵" in found.to_text()


def test_colour_uses_its_own_escapes_only(built):
    text = top_contexts(built.connection, built.sae(), 0, k=200).to_text(color=True)
    escapes = set(re.findall("\x1b\\[[^m]*m", text))
    assert escapes <= {"\x1b[0m"} | {f"\x1b[30;48;5;{n}m" for n in (230, 229, 222, 216, 209, 208)}
    assert "[[" not in text


def test_the_id_of_a_document_commands_no_terminal():
    row = {
        "corpus": "plain", "document": "a\x1b]0;owned\x07\n<b>", "context": 1, "position": 0,
        "value": 2.0, "activation": 2.0, "tokens": ["x"], "activations": [2.0],
    }  # fmt: skip
    assert contexts_text([row], color=False) == [
        "         2  plain a␛]0;owned␇↵<b> #1:0",
        "    [[x]]",
    ]
    assert "plain a␛]0;owned␇↵&lt;b&gt; #1:0" in contexts_html([row])


def test_html_is_escaped_and_shaded(built):
    html = top_contexts(built.connection, built.sae(), 0, k=300)._repr_html_()
    assert "<b>f" in html  # the title's own
    assert "&lt;b&gt;" in html
    assert " &amp; " in html
    assert "↵" in html
    assert "\x1b" not in html
    shades = [float(a) for a in re.findall(r"rgba\(255,140,0,([\d.]+)\)", html)]
    assert max(shades) == 1.0
    assert min(shades) < 0.2
