"""compare against a search of every token and firing of random lakes."""

from __future__ import annotations

from itertools import combinations, product
from math import erfc, log, sqrt

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scopelake.errors import (
    InvalidArgumentError,
    LayerNotFoundError,
    QueryError,
    SaeNotFoundError,
)
from scopelake.query.compared_coders import Choice
from scopelake.query.document_windows import DOCUMENT_TESTS as TESTS
from scopelake.query.token_sets import Side, TokenSet, token_table
from scopelake.store.keeping import Keep

WIDTH = 6
SAES = ("r-it/resid_post/l1", "r-it/resid_post/l2", "r-pt/resid_post/l1")
PAIRS = [
    ("role = 'user'", "role <> 'user'", None, None),
    ("document_index % 2 = 0", "metadata ->> 'lang' = 'b' -- odd ones", None, None),
    ("document_index % 2 = 0", "metadata ->> 'lang' = 'b' -- odd ones", "c", "c"),
    ("document_index < 3 AND position < 4", "document_index >= 2 AND position >= 4", None, None),
    ("token = ' cat' OR token = 'é'", "token NOT IN (' cat', 'é')", "c", None),
    ("turn = 1 AND kind = 'content'", "turn = 0", None, "d"),
    ("role = 'user'", "role = 'user'", "c", "d"),
    (None, None, "d", "c"),
]
"""Sets without a token in common: predicates and corpora."""


def counted(sides, saes, features, test, seed, unit=None, by="rate"):
    """The numbers of a comparison, by definition: a dictionary for each feature."""
    unit = unit or (lambda t: (t.corpus, t.document))
    documents = sorted({unit(t) for side in sides for t in side})
    split = [[[t for t in side if unit(t) == d] for side in sides] for d in documents]
    n = np.array([[len(part) for part in parts] for parts in split])
    windows, kept, test = place(split, n, test, seed)
    rows = []
    for pair in features:
        fires = [lambda t, s=s, f=pair[s]: t.fired.get(saes[s], {}).get(f, 0.0) for s in (0, 1)]
        row = {"feature": pair[0], "other_feature": pair[1]}
        for s, name in enumerate("ab"):
            on = [fires[s](t) for t in sides[s] if fires[s](t)]
            row[f"firings_{name}"] = len(on)
            row[f"documents_{name}"] = sum(any(map(fires[s], parts[s])) for parts in split)
            row[f"rate_{name}"] = len(on) / len(sides[s])
            row[f"mean_{name}"] = sum(on) / len(on) if on else None
            row[f"mean_of_all_{name}"] = sum(on) / len(sides[s])
        row["difference"] = row["rate_a"] - row["rate_b"]
        row["log_odds"] = log_odds(row["firings_a"], len(sides[0]), row["firings_b"], len(sides[1]))
        row |= rank_tested(
            [[[fires[s](t) for t in windows[d][s]] for s in (0, 1)] for d in kept], test, by
        )
        rows.append(row)
    return rows, n, test, tuple(sum(len(w[s]) for w in windows) for s in (0, 1))


def log_odds(fired_a, n_a, fired_b, n_b):
    if not fired_a + fired_b:
        return None
    cells = np.array([fired_a, n_a - fired_a, fired_b, n_b - fired_b], float)
    cells += 0.5 * (cells == 0).any()
    return log(cells[0] * cells[3] / cells[1] / cells[2])


def place(split, n, test, seed):
    """Which tokens of each document are tested, which documents, and in which test."""
    both = [bool(a and b) for a, b in n]
    if test is None:
        fewer = min((n[:, 0] > 0).sum(), (n[:, 1] > 0).sum())
        test = "signed-rank" if sum(both) * 2 >= fewer and any(both) else "rank-sum"
    kept = [d for d in range(len(n)) if both[d] == (test == "signed-rank")]
    mine = [[d for d in kept if n[d, s]] for s in (0, 1)]
    length = np.zeros_like(n)
    if min(map(len, mine)) < 2:
        return [[[], []] for _ in n], [], None
    for s in (0, 1):
        if test == "signed-rank":
            length[mine[s], s] = n[mine[s]].min(axis=1)
            continue
        others = sorted(n[d, 1 - s] for d in mine[1 - s])
        for i, d in enumerate(sorted(mine[s], key=lambda d: (n[d, s], d))):
            at = int((i + 0.5) / len(mine[s]) * len(others))
            length[d, s] = min(n[d, s], others[at])
    draw = np.random.default_rng(seed).random(n.shape)
    windows = []
    for d, parts in enumerate(split):
        windows.append([])
        for s in (0, 1):
            start = int(draw[d, s] * n[d, s]) if length[d, s] < n[d, s] else 0
            part = sorted(parts[s], key=lambda t: (t.corpus, t.context, t.position))
            windows[d].append((part * 2)[start : start + length[d, s]])
    return windows, kept, test


def rank_tested(documents, test, by):
    """z, p and AUC of a feature, from activations on the tested tokens of each document."""
    nothing = {"auc": None, "z": None, "p": None}
    value = (lambda p: np.mean(np.array(p) > 0)) if by == "rate" else np.mean
    rate = [[value(p) if p else None for p in parts] for parts in documents]
    if test == "signed-rank":
        difference = [x - y for x, y in rate]
        there = [d for d in difference if d]
        if not there:
            return nothing
        rank = mean_ranks([abs(d) for d in there])
        sums = np.array(list(product((0, 1), repeat=len(there)))) @ rank
        up = float(rank @ (np.array(there) > 0))
        z = (up - sums.mean()) / sums.std()
        p = doubled(sums, up) if len(there) <= 10 else erfc(abs(z) / sqrt(2))
        return {"auc": np.mean([(d > 0) + (d == 0) / 2 for d in difference]), "z": z, "p": p}
    if test is None or not any(v for both in rate for v in both):
        return nothing
    a = [x for x, y in rate if x is not None]
    b = [y for x, y in rate if y is not None]
    rank = mean_ranks([*a, *b])
    sums = np.array([rank[list(c)].sum() for c in combinations(range(len(rank)), len(a))])
    found = rank[: len(a)].sum()
    z = (found - sums.mean()) / sums.std() if sums.std() > 1e-12 else 0.0
    # Of more than ten documents that fire the tail is the matter of test_rank_tests.py.
    p = doubled(sums, found) if sum(v > 0 for v in [*a, *b]) <= 10 else ...
    return {"auc": np.mean([(x > y) + (x == y) / 2 for x in a for y in b]), "z": z, "p": p}


def mean_ranks(values):
    return np.array([
        sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values
    ])  # fmt: skip


def doubled(sums, found):
    return min(1, 2 * min(np.mean(sums >= found - 1e-9), np.mean(sums <= found + 1e-9)))


def check(found, wanted):
    rows = {r["feature"]: r for r in found.table.to_pylist()}
    assert sorted(rows) == sorted(r["feature"] for r in wanted)
    for want in wanted:
        row = rows[want["feature"]]
        for name, value in want.items():
            if value is None:
                assert row[name] is None, name
            elif value is not ...:
                assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    p = {f: r["p"] for f, r in rows.items() if r["p"] is not None}
    for f, row in rows.items():
        if f not in p:
            assert row["q"] is row["auc_low"] is None
            continue
        steps = [len(p) * x / sum(y <= x for y in p.values()) for x in p.values() if x >= p[f]]
        assert row["q"] == pytest.approx(min(1, *steps, 1))
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
    known = [r["p"] for r in found.table.to_pylist()]
    assert known == sorted(known, key=lambda x: (x is None, x))


@settings(max_examples=24, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.integers(0, 2), st.booleans(), st.sampled_from(PAIRS), st.sampled_from([None, *TESTS]),
    st.integers(0, 5), st.sampled_from(["rate", "activation"]),
)  # fmt: skip
def test_every_number_is_that_of_a_search(lakes, seed, packed, pair, test, draw, by):
    lake = lakes(seed, packed)
    asked = [TokenSet(*pair[::2]), TokenSet(*pair[1::2])]
    sides = [lake.chosen(one) for one in asked]
    found = lake.compare(*asked, test=test, seed=draw, by=by, at_once=60)
    features = [(f, f) for f in range(WIDTH)]
    wanted, n, which, n_tested = counted(sides, [SAES[0]] * 2, features, test, draw, by=by)
    check(found, wanted)
    assert found.test == which
    assert found.tested_tokens == n_tested
    for s, size in enumerate((found.a, found.b)):
        assert size.n_tokens == len(sides[s])
        assert size.n_documents == (n[:, s] > 0).sum()
    assert (which is None) == ("not tested: a " in found.note)
    assert found.to_text()
    assert found._repr_html_()


def test_units_stand_for_documents_in_all_corpora(lakes):
    lake = lakes(2, True)
    a, b = TokenSet(corpus="c"), TokenSet("position > 2", "d")
    found = lake.compare(a, b, unit="document_index % 4", at_once=60)
    sides = [lake.chosen(a), lake.chosen(b)]
    features = [(f, f) for f in range(WIDTH)]
    of = {"unit": lambda t: t.document_index % 4}
    wanted, n, test, n_tested = counted(sides, [SAES[0]] * 2, features, None, 0, **of)
    check(found, wanted)
    assert (found.test, test) == ("signed-rank", "signed-rank")
    assert found.n_documents == (4, 4)
    assert found.tested_tokens == n_tested
    assert "within 4 units" in str(found)
    assert "; units are document_index % 4" in str(found)
    with pytest.raises(InvalidArgumentError, match="of .* tokens it is null"):
        lake.compare(a, b, unit="nullif(document_index, 2)")
    for wrong in ("role =", "1; SELECT 2"):
        with pytest.raises(QueryError, match="not one SQL expression"):
            lake.compare(a, b, unit=wrong)
    with pytest.raises(QueryError, match="columns of a set of tokens are corpus, context"):
        lake.compare(a, b, unit="nothing")
    for wrong in ("row_number() OVER ()", "random()", "sum(position) OVER (PARTITION BY context)"):
        with pytest.raises(QueryError, match="gives a token another value"):
            lake.compare(a, b, unit=wrong)
    with pytest.raises(QueryError, match="random gives"):
        TokenSet("random() < 0.5")


@pytest.mark.parametrize("packed", [False, True])
def test_two_models_are_compared_by_mutually_nearest_features(lakes, packed):
    lake = lakes(1, packed)
    both = (SAES[0], SAES[2])
    there, back = lake.nearest[both], lake.nearest[both[::-1]]
    features = [(f, g) for f, g in enumerate(there) if back[g] == f]
    assert 0 < len(features) < WIDTH
    for a, b in (
        (TokenSet(model="gemma-it"), TokenSet(model="pt")),
        (TokenSet("role = 'user'", sae=both[0]), TokenSet("position > 2", sae=both[1])),
    ):
        found = lake.compare(a, b, Choice(layer=(1,)), at_once=30)
        wanted, *_ = counted([lake.chosen(a), lake.chosen(b)], both, features, None, 0)
        check(found, wanted)
        for row in found.table.to_pylist():
            assert (row["sae"], row["other_sae"]) == both
            assert row["cosine"] == pytest.approx(0.5 + row["feature"] / 100)
        lost = f"{WIDTH - len(features)} features of {both[0]} have no mutually nearest one"
        assert lost in found.note
        assert "cosine 0.5" in found.to_text()


def test_features_of_several_saes_are_one_family(lakes):
    lake = lakes(2)
    a, b = TokenSet("role = 'user'"), TokenSet("role <> 'user'")
    found = lake.compare(a, b, Choice(("resid_post/l1", "r-it/resid_post/l2")))
    assert sorted({*found.table["sae"].to_pylist()}) == sorted(SAES)
    p = [x for x in found.table["p"].to_pylist() if x is not None]
    assert len(p) == found.n_tested > WIDTH
    lowest = min(len(p) * x / (i + 1) for i, x in enumerate(p))
    assert found.table["q"][0].as_py() == pytest.approx(min(lowest, 1))
    for sae in SAES:
        alone = lake.compare(a, b, Choice((sae,))).table
        mine = found.table.filter(pc.equal(found.table["sae"], sae))
        columns = [c for c in alone.column_names if c != "q"]
        assert mine.select(columns).to_pylist() == alone.select(columns).to_pylist()


@pytest.mark.parametrize("shares", [(0.9, 0.5), (0.5, 1.0)])
def test_of_two_samples_of_documents_the_smaller_one_counts(lakes, shares):
    lake = lakes(0)
    sides = tuple(Side(TokenSet(corpus="c"), {"c": Keep(share)}) for share in shares)
    asked = {"may_overlap": True, "unit": None, "test": None, "seed": 0}
    there = [t for t in lake.chosen(TokenSet(corpus="c")) if Keep(0.5).has(t.document)]
    assert 0 < len({t.document for t in there}) < 7
    with token_table(lake.connection, sides, {}, **asked) as tokens:
        assert tokens.n_tokens.sum(axis=0).tolist() == [len(there)] * 2
        assert tokens.n_lost > 0


def test_features_have_their_first_label(lakes):
    lake = lakes(0)
    a, b = TokenSet("role = 'user'"), TokenSet("role <> 'user'")
    found = lake.compare(a, b, Choice(layer=(1,)))
    labels = {(r["sae"], r["feature"]): r["label"] for r in found.table.to_pylist() if r["label"]}
    assert labels == {(SAES[0], 0): "<first>", (SAES[0], 3): "third"}
    assert f"0  of {SAES[0]}  <first>" in found.to_text(None)
    assert "&lt;first&gt;" in found._repr_html_()
    assert found.table["promotes"].null_count == found.table.num_rows


def test_names_and_layers_are_chosen_among_all_that_fit(lakes):
    there = lakes(0).saes
    names = [s.name for s in Choice(SAES[:2], (1, 2)).coders(there)]
    assert names == sorted(SAES[:2], key=lambda name: name[-1])
    assert {s.name for s in Choice(("/l1",)).coders(there)} == {SAES[0], SAES[2]}
    assert len(Choice(site="resid_post").coders(there)) == 3
    for choice, error, said in (
        (Choice(("l1",), (1, 2)), LayerNotFoundError, "of layer 2 was asked for; the lake has"),
        (Choice((SAES[0], "l2"), (2,)), LayerNotFoundError, "at layers 1; choose"),
        (Choice(site="mlp_in"), SaeNotFoundError, "an SAE of site mlp_in was asked for"),
        (Choice(("x", SAES[0])), SaeNotFoundError, "named 'x'"),
    ):
        with pytest.raises(error, match=said):
            choice.coders(there)


def test_a_choice_of_rows_is_made(lakes):
    found = lakes(0).compare(TokenSet("role = 'user'"), TokenSet("role <> 'user'"))
    table = found.table.to_pylist()
    assert found.top(2).to_pylist() == table[:2]
    assert found.top(None).num_rows == WIDTH
    more = [r for r in table if r["auc"] is not None and r["auc"] > 0.5]
    assert found.top(higher="a").to_pylist() == more
    q = table[1]["q"]
    assert found.top(q=q).to_pylist() == [r for r in table if r["q"] is not None and r["q"] <= q]
    assert found.to_dict(1)["features"] == table[:1]
    assert "... and 5 more features" in found.to_text(1)
    for wrong in ({"k": -1}, {"q": 2}, {"higher": "c"}):
        with pytest.raises(InvalidArgumentError, match="was asked for"):
            found.top(**wrong)
