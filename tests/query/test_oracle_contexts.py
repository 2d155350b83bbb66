"""Contexts of a feature: every way to ask for them, beside a sort of all firings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.query.oracle import N_LAKES, RESID, SAES, SILENT, WIDTH, Context, Firing, World

from scopelake.errors import NotIngestedError, QueryError
from scopelake.names import CONTEXT_RANKINGS

SEEDS = st.integers(0, N_LAKES - 1)
SAE = st.sampled_from(list(SAES))
FEATURE = st.integers(0, WIDTH - 1)
CORPUS = st.sampled_from([None, "plain", "chats"])
WINDOW = st.sampled_from([0, 1, 3, 50, None])

pytestmark = pytest.mark.filterwarnings("ignore::scopelake.errors.PartialWarning")

few = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

Keeps = Callable[[Firing, Context], bool]
WHERES: dict[str | None, Keeps] = {
    None: lambda f, c: True,
    "role = 'user'": lambda f, c: c.roles[f.position] == "user",
    "kind IN ('template', 'generated') AND turn < 2": lambda f, c: (
        c.kinds[f.position] in ("template", "generated") and c.turns[f.position] < 2
    ),
    "kind = 'bos' OR position = 1": lambda f, c: c.kinds[f.position] == "bos" or f.position == 1,
    "token = ' cat' OR document = 'doc-1'": lambda f, c: (
        c.shown[f.position] == " cat" or c.document(f.position).id == "doc-1"
    ),
    "token = ''": lambda f, c: c.shown[f.position] == "",
    "token_id = 12": lambda f, c: c.ids[f.position] == 12,
    "metadata ->> 'lang' = 'l1' AND activation < 2": lambda f, c: (
        c.document(f.position).lang == "l1" and f.activation < 2
    ),
    "position BETWEEN 2 AND 4": lambda f, c: 2 <= f.position <= 4,
    "corpus = 'chats' AND n_tokens > 5": lambda f, c: c.corpus == "chats" and len(c.ids) > 5,
    "text LIKE '%日本%' -- a comment": lambda f, c: "日本" in c.text,
    "part = 0 AND document_index % 2 = 0": lambda f, c: (
        c.document(f.position).part == 0 and c.document(f.position).index % 2 == 0
    ),
    "token <> '<bos>' AND context > 1": lambda f, c: (
        c.shown[f.position] != "<bos>" and c.number > 1
    ),
}

VALUES: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "mean": lambda a: math.fsum(a) / len(a),
    "sum": math.fsum,
    "count": len,
}


def ranked(world: World, sae, feature, *, corpus=None, where=None, bos=False, by="max",
           distinct=False):  # fmt: skip
    """corpus, context, position, activation and value of each context, the highest first."""
    counted: dict[tuple, list[tuple[float, int]]] = {}
    for f in world.fired(sae, feature, corpus, bos=bos):
        context = world.contexts[f.corpus, f.context]
        if WHERES[where](f, context):
            document = context.document(f.position).id if distinct else ""
            key = (f.corpus, f.context, document)
            counted.setdefault(key, []).append((-f.activation, f.position))
    rows = sorted(
        (-VALUES[by]([-a for a, _ in firings]), corpus, number, min(firings)[1], document,
         -min(firings)[0])
        for (corpus, number, document), firings in counted.items()
    )  # fmt: skip
    if distinct:
        first: dict[tuple, tuple] = {}
        for row in rows:
            first.setdefault((row[1], row[4]), row)
        rows = list(first.values())
    return [
        {"corpus": c, "context": n, "position": p, "activation": a, "value": -value}
        for value, c, n, p, _, a in rows
    ]  # fmt: skip


def shown(world: World, sae, feature, rows, window, *, bos=False):
    """The rows with their windows."""
    fired = {(f.corpus, f.context, f.position): f.activation
             for f in world.fired(sae, feature, bos=bos)}  # fmt: skip
    # Of what was not kept only the peak of a context is known.
    peaks = {(r["corpus"], r["context"], r["position"])
             for r in ranked(world, sae, feature, bos=bos)}  # fmt: skip
    found = []
    for rank, row in enumerate(rows):
        context = world.contexts[row["corpus"], row["context"]]
        start, stop = 0, len(context.ids)
        if window is not None:
            start = max(0, row["position"] - window)
            stop = min(stop, row["position"] + window + 1)
        at = [(*context.key, p) for p in range(start, stop)]
        is_whole = world.runs[sae, row["corpus"]] == "all"
        activations = [fired.get(key, 0.0) if is_whole or key in peaks else None for key in at]
        found.append(row | {
            "rank": rank, "document": context.document(row["position"]).id, "start": start,
            "stop": stop, "tokens": context.shown[start:stop], "activations": activations,
            "text": "".join(context.shown[start:stop]),
        })  # fmt: skip
    return found


def is_answerable(world: World, sae, corpus, *, where, bos, by) -> bool:
    """Whether what was kept tells it."""
    plain = where is None and not bos and by == "max"
    return plain or world.whole(sae, corpus) == world.on(sae, corpus)


@settings(few, max_examples=60)
@given(
    seed=SEEDS, sae=SAE, feature=FEATURE, k=st.sampled_from([1, 3, 20, 256, 300]), window=WINDOW,
    corpus=CORPUS, where=st.sampled_from(list(WHERES)), bos=st.booleans(),
    by=st.sampled_from(CONTEXT_RANKINGS), distinct=st.booleans(),
)  # fmt: skip
def test_top_contexts(
    random_lake, seed, sae, feature, k, window, corpus, where, bos, by, distinct
):  # fmt: skip
    world, lake = random_lake(seed)
    how = {"corpus": corpus, "where": where, "bos": bos, "by": by}
    asked = {"sae": sae, "k": k, "window": window, "distinct": distinct} | how
    if not world.on(sae, corpus):
        with pytest.raises(NotIngestedError):
            lake.top_contexts(feature, **asked)
        return
    if not is_answerable(world, sae, corpus, where=where, bos=bos, by=by) or (
        k > 256 and world.whole(sae, corpus) != world.on(sae, corpus)
    ):
        with pytest.raises(QueryError, match="not all firings"):
            lake.top_contexts(feature, **asked)
        return
    rows = ranked(world, sae, feature, distinct=distinct, **how)[:k]
    expected = shown(world, sae, feature, rows, window, bos=bos)
    found = lake.top_contexts(feature, **asked)
    assert found.table.to_pylist() == [{key: row[key] for key in found.table.column_names}
                                       for row in expected]  # fmt: skip
    query = lake.explain_top_contexts(feature, **{n: v for n, v in asked.items() if n != "window"})
    ordered = lake.sql(query).select(["corpus", "context", "position", "activation", "value"])
    assert ordered.to_pylist() == rows


@few
@given(seed=SEEDS, sae=SAE, feature=FEATURE, k=st.sampled_from([1, 4, 256, 300]), corpus=CORPUS,
       around=st.sampled_from([0, 2, 50]))  # fmt: skip
def test_top_contexts_in_sql(random_lake, seed, sae, feature, k, corpus, around):
    world, lake = random_lake(seed)
    query = "FROM top_contexts_of($sae, $feature, k := $k, corpus := $corpus, around := $around)"
    asked = {"sae": sae, "feature": feature, "k": k, "corpus": corpus, "around": around}
    if world.whole(sae, corpus) != world.on(sae, corpus) and k > 256:
        with pytest.raises(QueryError, match="not all firings"):
            lake.sql(query, asked)
        return
    if not world.on(sae, corpus):
        with pytest.raises(QueryError, match="it was not run there"):
            lake.sql(query, asked)
        return
    rows = ranked(world, sae, feature, corpus=corpus)[:k]
    expected = [row | {"sae": sae} for row in shown(world, sae, feature, rows, around)]
    found = lake.sql(query, asked).to_pylist()
    assert [{key: row[key] for key in found[0]} for row in expected] == found if found else (
        expected == []
    )  # fmt: skip
    if sae == RESID:
        again = lake.sql(
            "FROM top_contexts(1, $feature, k := $k, corpus := $corpus, around := $around)",
            {name: value for name, value in asked.items() if name != "sae"},
        )
        assert again.to_pylist() == found


def parts(rows: list, n: int) -> list[list]:
    """As equal as they can be, the longer ones first."""
    short, longer = divmod(len(rows), n)
    ends = [0]
    for i in range(n):
        ends.append(ends[-1] + short + (i < longer))
    return [rows[a:b] for a, b in zip(ends, ends[1:], strict=False)]


@few
@given(
    seed=SEEDS, sae=SAE, feature=st.integers(0, SILENT), corpus=CORPUS,
    where=st.sampled_from([None, "role = 'user'", "position BETWEEN 2 AND 4"]),
    how=st.sampled_from(["quantile", "uniform"]), n_bands=st.integers(1, 4), bos=st.booleans(),
    k=st.integers(4, 30), of_seed=st.integers(0, 3), window=WINDOW, distinct=st.booleans(),
)  # fmt: skip
def test_samples(
    random_lake, seed, sae, feature, corpus, where, how, n_bands, bos, k, of_seed, window, distinct
):  # fmt: skip
    world, lake = random_lake(seed)
    asked = {"sae": sae, "corpus": corpus, "where": where, "bos": bos, "k": k, "window": window,
             "n_bands": n_bands, "seed": of_seed, "distinct": distinct}  # fmt: skip
    if world.whole(sae, corpus) != world.on(sae, corpus) or not world.on(sae, corpus):
        with pytest.raises((QueryError, NotIngestedError)):
            lake.sample_contexts(feature, how, **asked)
        return
    rows = ranked(world, sae, feature, corpus=corpus, where=where, bos=bos, distinct=distinct)
    rows.reverse()
    bands = parts(rows, n_bands)
    if how == "uniform" and rows:
        low, high = rows[0]["activation"], rows[-1]["activation"]
        bands = [[] for _ in range(n_bands)]
        for row in rows:
            edges = [low + (high - low) * i / n_bands for i in range(1, n_bands)]
            bands[sum(row["activation"] >= edge for edge in edges)].append(row)
    found = lake.sample_contexts(feature, how, **asked).table.to_pylist()
    assert found == lake.sample_contexts(feature, how, **asked).table.to_pylist()
    sizes = [len(part) for part in parts(list(range(k)), n_bands)]
    for i, (band, size) in enumerate(zip(bands, sizes, strict=True)):
        mine = [row for row in found if row["band"] == i]
        assert len(mine) == min(size, len(band))
        place = [band.index({n: row[n] for n in band[0]}) for row in mine]
        # In a band they are by rank, each once.
        assert place == sorted(set(place), reverse=True)
        for row in mine:
            ends = band[0]["activation"], band[-1]["activation"]
            assert (row["low"], row["high"], row["n_contexts"]) == (*ends, len(band))
        chosen = [band[p] for p in place]
        for row, wanted in zip(mine, shown(world, sae, feature, chosen, window, bos=bos),
                               strict=True):  # fmt: skip
            keys = ("document", "start", "stop", "tokens", "activations", "text")
            assert {n: row[n] for n in keys} == {n: wanted[n] for n in keys}


@few
@given(seed=SEEDS, sae=SAE, feature=FEATURE, corpus=CORPUS, k=st.sampled_from([1, 5, 100]),
       window=WINDOW)  # fmt: skip
def test_contrast(random_lake, seed, sae, feature, corpus, k, window):
    world, lake = random_lake(seed)
    asked = {"sae": sae, "corpus": corpus, "k": k, "window": window}
    if world.whole(sae, corpus) != world.on(sae, corpus) or not world.on(sae, corpus):
        with pytest.raises((QueryError, NotIngestedError)):
            lake.contrast_contexts(feature, **asked)
        return
    fires = {(f.corpus, f.context) for f in world.fired(sae, feature, corpus)}
    best: dict[tuple[str, int], tuple] = {}
    for other, cosine in world.neighbors(sae, feature, sae):
        rows = ranked(world, sae, other, corpus=corpus)
        for row in rows:
            share = row["activation"] / rows[0]["activation"]
            key = (row["corpus"], row["context"])
            if key not in fires:
                found = (-share, other, cosine, row)
                best[key] = min(best.get(key, found), found, key=lambda one: one[:2])
    ordered = sorted(best.items(), key=lambda item: (item[1][0], item[0]))[:k]
    expected = []
    for rank, (_, (share, other, cosine, row)) in enumerate(ordered):
        (one,) = shown(world, sae, other, [row], window)
        more = {"rank": rank, "value": -share, "other_feature": other, "cosine": cosine}
        expected.append(one | more)
    found = lake.contrast_contexts(feature, **asked).table
    assert found.to_pylist() == [{n: row[n] for n in found.column_names} for row in expected]
