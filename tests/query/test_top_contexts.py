"""top_contexts against a brute-force oracle, from both tables that can answer it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scopelake.errors import CorpusNotFoundError, InvalidArgumentError, QueryError
from scopelake.names import KINDS, ROLES
from scopelake.query.contexts import explain_top_contexts, top_contexts
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


def oracle(built, sae, feature, *, k, window, corpus, where, bos):
    """The answer by sorting every firing there is."""
    mine = [
        r for r in built.rows
        if r.sae == sae.name and r.feature == feature and (bos or r.kind != "bos")
    ]  # fmt: skip
    fired = {(r.corpus, r.context, r.position): r.activation for r in mine}
    best: dict[tuple[str, int], tuple[float, int]] = {}
    for r in mine:
        context = built.contexts[r.corpus, r.context]
        if corpus in (None, r.corpus) and WHERES[where](r, context):
            key = (r.corpus, r.context)
            best[key] = min(best.get(key, (0.0, 0)), (-r.activation, r.position))
    ranked = sorted((a, *key, p) for key, (a, p) in best.items())[:k]
    rows = []
    for rank, (negative, name, number, position) in enumerate(ranked):
        context = built.contexts[name, number]
        start, stop = max(0, position - window), min(len(context.pieces), position + window + 1)
        rows.append({
            "rank": rank, "corpus": name, "context": number, "position": position,
            "activation": -negative, "document": context.document, "start": start, "stop": stop,
            "tokens": context.shown[start:stop],
            "activations": [fired.get((name, number, p), 0.0) for p in range(start, stop)],
            "text": "".join(context.shown[start:stop]),
        })  # fmt: skip
    return rows


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    feature=st.integers(0, 11),
    k=st.sampled_from([1, 2, 20, 256, 257, 5000]),
    window=st.sampled_from([0, 1, 4, 100]),
    corpus=st.sampled_from([None, "plain", "chats"]),
    where=st.sampled_from(list(WHERES)),
    bos=st.booleans(),
    place=st.sampled_from([(1, "resid_post"), (2, "mlp_out")]),
)
def test_it_agrees_with_brute_force(built, feature, k, window, corpus, where, bos, place):
    asked = {"k": k, "window": window, "corpus": corpus, "where": where, "bos": bos}
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
    assert "peaks" in explain_top_contexts(built.sae(), feature, k=k)
    assert "postings" in explain_top_contexts(built.sae(), feature, k=257)


@pytest.mark.parametrize(("where", "k"), [(None, 5), (None, 300), ("role = 'user'", 5)])
def test_explain_gives_sql_that_ranks_the_same(built, where, k):
    query = explain_top_contexts(built.sae(), 0, k=k, corpus="chats", where=where)
    found = top_contexts(built.connection, built.sae(), 0, k=k, corpus="chats", where=where)
    ranked = sql(built.connection, query)
    assert ranked.num_rows > 1
    assert ranked == found.table.select(ranked.column_names)


@pytest.mark.parametrize("asked", [{"k": 0}, {"k": -3}, {"k": 2.5}, {"window": -1}])
def test_arguments_out_of_range_are_refused(built, asked):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(asked))}="):
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
