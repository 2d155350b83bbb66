"""Macros: the same answers as the verbs and as brute force, and the same refusals."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from scopelake.errors import QueryError
from scopelake.query.contexts import top_contexts
from scopelake.query.firing import features_at
from scopelake.query.limits import Watch
from scopelake.query.rank_contexts import Ranking
from scopelake.query.resolve import list_saes
from scopelake.query.sql import sql

ONE, TWO = "gs-2/resid_post/layer_1_width_12", "gs-2/mlp_out/layer_2_width_12"


def rows(built, query, params=None):
    return sql(built.connection, query, params).to_pylist()


def strongest(built, feature, corpus=None):
    """corpus, context, position and activation of each context's peak, strongest first."""
    best = {}
    for r in built.rows:
        if r.sae == ONE and r.feature == feature and r.kind != "bos" and corpus in (None, r.corpus):
            key = (r.corpus, r.context)
            if key not in best or (-r.activation, r.position) < best[key]:
                best[key] = (-r.activation, r.position)
    ordered = sorted((-a, key, p) for key, (a, p) in best.items())
    return [(*key, p, a) for a, key, p in sorted(ordered, key=lambda o: (-o[0], o[1]))]


@pytest.mark.parametrize("corpus", [None, "plain", "chats"])
@pytest.mark.parametrize("k", [1, 20, 256, 257, 5000])
@pytest.mark.parametrize("feature", [0, 3, 11])
def test_top_contexts_agree_with_the_verb_and_with_brute_force(built, feature, k, corpus):
    query = "FROM top_contexts(1, $f, k := $k, corpus := $c, around := 2)"
    found = rows(built, query, {"f": feature, "k": k, "c": corpus})
    expected = strongest(built, feature, corpus)[:k]
    assert [(r["corpus"], r["context"], r["position"], r["activation"]) for r in found] == expected
    verb = top_contexts(built.connection, Ranking(built.sae(), feature, k, corpus), window=2)
    assert [{**r, "sae": ONE} for r in verb.table.to_pylist()] == found


def test_top_contexts_by_name_by_parameter_and_lateral_use(built):
    by_name = rows(built, "FROM top_contexts_of('post/layer_1_width_12', 3, k := 5)")
    assert by_name == rows(built, "FROM top_contexts(?, ?, k := ?)", [1, 3, 5])
    both = rows(built, "SELECT max(rank) AS most, sae FROM top_contexts(NULL, 3, k := 5, "
                       f"sae := '{TWO}') GROUP BY sae")  # fmt: skip
    assert both == [{"most": 4, "sae": TWO}]


def test_only_files_of_the_feature_are_read(counted):
    for query in (
        "SELECT count(*) FROM top_contexts(1, 3, corpus := 'chats')",
        "SELECT count(*) FROM top_contexts($l, $f, corpus := $c, k := 300)",
        "SELECT count(*) FROM coactive('layer_1_width_12', 3, corpus := 'chats')",
    ):
        given = {"l": 1, "f": 3, "c": "chats"} if "$" in query else None
        plan = counted.connection.cursor_for(query, Watch(None)).execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", given or []
        )
        scans = [node["extra_info"] for node in nodes(json.loads(plan.fetchone()[1]))
                 if "Total Files Read" in node["extra_info"]]  # fmt: skip
        assert scans
        # One SAE, one corpus: one file of each table of firings.
        for scan in scans:
            if "/contexts/" not in scan["Filename(s)"]:
                assert scan["Total Files Read"] == "1"
                assert "layer_1_width_12/corpus=chats" in scan["Filename(s)"]


def nodes(plan):
    yield from (node for child in plan["children"] for node in (child, *nodes(child)))


@pytest.mark.parametrize("corpus", ["plain", "chats"])
@pytest.mark.parametrize(("position", "k", "sae"), [(None, None, None), (1, None, None),
                                                    (None, 2, None), (2, 1, ONE)])  # fmt: skip
def test_features_at_agrees_with_the_verb(built, corpus, position, k, sae):
    saes = list_saes(built.store, built.snapshot)
    for context in (0, 7, 36):
        if position is not None and position >= len(built.contexts[corpus, context].pieces):
            continue
        found = rows(
            built,
            "FROM features_at($x, $p, corpus := $c, k := $k, sae := $s)",
            {"x": context, "p": position, "c": corpus, "k": k, "s": sae},
        )
        verb = features_at(
            built.connection, built.store, built.snapshot, saes, context, position,
            corpus=corpus, k=k, sae=sae,
        )  # fmt: skip
        assert found == verb.table.to_pylist()


@pytest.mark.parametrize("corpus", [None, "plain", "chats"])
@pytest.mark.parametrize("other", [ONE, TWO])
@pytest.mark.parametrize(("feature", "k"), [(0, None), (3, 4), (11, 20)])
def test_coactive_agrees_with_brute_force(counted, feature, k, other, corpus):
    fires = {}
    for r in counted.rows:
        if r.kind != "bos" and corpus in (None, r.corpus):
            fires.setdefault((r.sae, r.feature), set()).add((r.corpus, r.context, r.position))
    # What the statistics of this lake divide by.
    n_tokens = 2000 if corpus is None else 1000
    mine = fires.get((ONE, feature), set())
    expected = []
    for (sae, f), theirs in fires.items():
        n = len(mine & theirs)
        if sae == other and n and (sae, f) != (ONE, feature):
            lift = n * n_tokens / (len(mine) * len(theirs))
            expected.append((f, n, len(mine), len(theirs), n_tokens, lift, math.log2(lift)))
    expected.sort(key=lambda e: (-e[1] * e[-1], -e[1], e[0]))
    found = rows(
        counted,
        "FROM coactive($s, $f, k := $k, corpus := $c, other_sae := $o)",
        {"s": ONE, "f": feature, "k": k, "c": corpus, "o": other},
    )
    assert all(r.pop("other_sae") == other for r in found)
    assert len(found) == len(expected[:k])
    for row, want in zip(found, expected, strict=False):
        assert tuple(row.values()) == pytest.approx(want)


def test_a_card_has_the_statistics_of_the_view(built):
    (total, plain) = rows(built, "FROM feature_card('layer_1_width_12', 3)")
    (stored,) = rows(built, f"FROM features WHERE sae = '{ONE}' AND feature = 3")
    assert (total["corpus"], plain["corpus"]) == (None, "plain")
    shared = set(stored) & set(plain) - {"corpus"}
    assert len(shared) >= 15
    for name in shared:
        assert plain[name] == stored[name]
        assert total[name] == pytest.approx(stored[name])
    assert (plain["layer"], plain["site"], plain["labels"]) == (1, "resid_post", None)


def number(piece):
    """The id of a piece in the lake that is built here."""
    pieces = ("the", " cat", "\n", "é", "日本", "<b>", " & ", "'q\"", "", "🙂", " sat", "\x1b[31m")
    return pieces.index(piece) if piece in pieces else 99


def test_the_vocabulary_has_the_texts_of_whole_tokens(built):
    texts, counts = {}, Counter()
    for c in built.contexts.values():
        for i, (piece, kind) in enumerate(zip(c.pieces, c.kinds, strict=True)):
            counts[number(piece)] += 1
            before = "x" if i == 0 or c.kinds[i - 1] == 2 else c.pieces[i - 1]
            if (piece and before) or kind == 2:
                texts.setdefault(number(piece), set()).add(c.shown[i])
    found = {r["token_id"]: r for r in rows(built, "FROM vocabulary")}
    assert {t: r["n_tokens"] for t, r in found.items()} == dict(counts)
    for token_id, row in found.items():
        spelt = texts.get(token_id, set())
        assert row["token"] == (next(iter(spelt)) if len(spelt) == 1 else None)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("top_contexts(2, 3, site := NULL)", "2 SAEs fit: .*mlp_out.*name one with sae"),
        ("top_contexts(9, 3)", "of layer 9 was asked for; the lake has gs-2"),
        ("top_contexts(1, 12)", "features 0 to 11"),
        ("top_contexts(1, -1)", "features 0 to 11"),
        ("top_contexts(1, NULL)", "feature NULL"),
        ("top_contexts(1, 3, k := 0)", "k=0 was asked for"),
        ("top_contexts(1, 3, k := NULL)", "k=NULL was asked for"),
        ("top_contexts(1, 3, around := -1)", "around=-1 was asked for"),
        ("top_contexts(1, 11, corpus := 'nowhere')", "the lake has chats, plain"),
        ("top_contexts_of(NULL, 3)", "3 SAEs fit"),
        ("top_contexts_of('no such''; --', 3)", "no such'; --"),
        ("features_at(0, 0)", "the lake has chats, plain; name one with corpus"),
        ("features_at(400, 0, corpus := 'plain')", "context 400 .* there is none"),
        ("features_at(0, 99, corpus := 'plain')", "it has positions 0 to"),
        ("features_at(0, -1, corpus := 'plain')", "it has positions 0 to"),
        ("features_at(0, 0, corpus := 'plain', k := 0)", "k=0"),
        ("features_at(0, 0, corpus := 'plain', sae := 'x')", "named 'x'"),
        (f"feature_card('{TWO}', 3)", "no statistics yet"),
        ("feature_card('layer_1_width_12', 99)", "features 0 to 11"),
        ("coactive('layer_2_width_12', 3)", "2 SAEs fit"),
        ("coactive('layer_1_width_12', 3, other_sae := 'x')", "named 'x'"),
        ("coactive('layer_1_width_12', 3, k := 0)", "k=0"),
        ("coactive('layer_1_width_12', 3)", "statistics of .*layer_1.* on corpus 'chats' are not"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(built, call, said):
    for query in (f"FROM {call}", f"SELECT count(*) FROM {call}"):
        with pytest.raises(QueryError, match=said) as caught:
            sql(built.connection, query)
        assert "\n" not in str(caught.value)


def test_ids_are_decoded(built):
    query = (
        "SELECT decode([1, 3, 4]) AS a, decode([]) AS b, decode(NULL) AS c, decode([0, 77]) AS d"
    )
    assert rows(built, query) == [{"a": " caté日本", "b": "", "c": None, "d": "the\ufffd"}]
    with pytest.raises(QueryError, match="tokenizer 'y' was asked for; the lake has x"):
        sql(built.connection, "SELECT decode([1], tokenizer := 'y')")
