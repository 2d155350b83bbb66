"""Views and dask's frames, row by row, beside what was written."""

from __future__ import annotations

import pytest
from tests.query.oracle import N_LAKES, SAES, WIDTH, World, band
from tests.query.random_lake import is_kept

pytestmark = [
    pytest.mark.filterwarnings("ignore::scopelake.errors.PartialWarning"),
    pytest.mark.parametrize("seed", range(N_LAKES)),
]


def kept(world: World):
    return [
        f for f in world.firings
        if is_kept(world.contexts[f.corpus, f.context], world.runs[f.sae, f.corpus])
    ]  # fmt: skip


def firing_rows(world: World, firings):
    return [
        {"sae": f.sae, "corpus": f.corpus, "context": f.context, "position": f.position,
         "feature": f.feature, "activation": f.activation, "kind": world.kind(f)}
        for f in firings
    ]  # fmt: skip


def test_firings(random_lake, seed):
    world, lake = random_lake(seed)
    expected = firing_rows(world, kept(world))
    order = "ORDER BY sae, corpus, context, position, feature"
    columns = "sae, corpus, context, position, feature, activation, kind"
    for view in ("codes", "postings"):
        assert lake.sql(f"SELECT {columns} FROM {view} {order}").to_pylist() == expected


def test_tokens(random_lake, seed):
    world, lake = random_lake(seed)
    expected = [
        {"corpus": c.corpus, "context": c.number, "position": p, "token_id": c.ids[p],
         "token": c.shown[p], "role": c.roles[p], "turn": c.turns[p], "kind": c.kinds[p],
         "document": c.document(p).id}
        for _, c in sorted(world.contexts.items()) for p in range(len(c.ids))
    ]  # fmt: skip
    assert lake.sql("FROM tokens ORDER BY corpus, context, position").to_pylist() == expected


def test_peaks(random_lake, seed):
    world, lake = random_lake(seed)
    expected = []
    for sae, corpus in sorted(world.runs):
        for feature in range(WIDTH):
            best: dict[int, tuple] = {}
            for f in world.fired(sae, feature, corpus):
                one = (-f.activation, f.context, f.position)
                best[f.context] = min(best.get(f.context, one), one)
            expected += [
                {"sae": sae, "corpus": corpus, "feature": feature, "rank": rank, "context": context,
                 "position": position, "activation": -negative, "source": "ingest"}
                for rank, (negative, context, position) in enumerate(sorted(best.values()))
            ]  # fmt: skip
    found = lake.sql("FROM peaks ORDER BY sae, corpus, feature, rank").to_pylist()
    assert found == expected


def test_samples_are_five_of_each_band(random_lake, seed):
    world, lake = random_lake(seed)
    there: dict[tuple, set] = {}
    for f in world.firings:
        if world.kind(f) != "bos":
            key = (f.sae, f.corpus, f.feature, band(f.activation))
            there.setdefault(key, set()).add((f.context, f.position, f.activation))
    found: dict[tuple, list] = {}
    for row in lake.sql("FROM samples").to_pylist():
        key = tuple(row[name] for name in ("sae", "corpus", "feature", "band"))
        one = tuple(row[name] for name in ("context", "position", "activation"))
        found.setdefault(key, []).append(one)
    assert found.keys() == there.keys()
    for key, rows in found.items():
        assert len(rows) == min(5, len(there[key])) == len(set(rows))
        assert set(rows) <= there[key]


def test_frames(random_lake, seed):
    world, lake = random_lake(seed)
    for sae in SAES:
        for corpus in world.whole(sae):
            mine = [f for f in world.firings if (f.sae, f.corpus) == (sae, corpus)]
            expected = firing_rows(world, mine)
            for table in ("codes", "postings"):
                frame = getattr(lake, table)(sae=sae, corpus=corpus).compute().reset_index()
                frame = frame.astype({"sae": str, "corpus": str, "kind": str})
                frame = frame.sort_values(["context", "position", "feature"])
                assert frame[list(expected[0])].to_dict("records") == expected


def test_contexts(random_lake, seed):
    world, lake = random_lake(seed)
    contexts = [c for _, c in sorted(world.contexts.items())]
    columns = ("corpus", "context", "text", "n_tokens", "token_ids", "roles", "turns", "kinds")
    expected = [
        dict(zip(columns, (c.corpus, c.number, c.text, len(c.ids), c.ids, c.roles, c.turns,
                           c.kinds), strict=True))
        for c in contexts
    ]  # fmt: skip
    view = lake.sql(f"SELECT {', '.join(columns)} FROM contexts ORDER BY corpus, context")
    assert view.to_pylist() == expected
    frame = lake.contexts().compute().reset_index().sort_values(["corpus", "context"])
    lists = {name: frame[name].map(list) for name in ("token_ids", "roles", "turns", "kinds")}
    found = frame.assign(corpus=frame["corpus"].astype(str), **lists)[list(columns)]
    assert found.to_dict("records") == expected
