"""contrast_contexts against a search of every firing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from scopelake.errors import InvalidArgumentError, NotIngestedError, QueryError
from scopelake.names import KIND_BOS
from scopelake.query.connect import connect
from scopelake.query.contrast import contrast_contexts
from scopelake.query.resolve import Partial, list_saes
from scopelake.query.sql import sql
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.parquet import write_parquet
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.writer import write_contexts, write_firings

N, WIDTH = 60, 6
NEAREST = {0: [(1, 0.9), (2, 0.5), (3, 0.5)], 4: [], 5: [(4, 0.1)]}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Contexts of 3 tokens, the first BOS; feature 4 never fires, feature 5 in every context."""
    store = LakeStore.create(tmp_path_factory.mktemp("contrast") / "lake")
    rng = np.random.default_rng(3)
    cells = [
        (c, p, f, float(rng.choice([0.5, 1.0, 2.0, 8.0])))
        for c in range(N) for p in range(3) for f in range(WIDTH)
        if (f == 5 and p == 1) or (f < 4 and rng.random() < (0.15 if f else 0.3))
    ]  # fmt: skip
    context, position, feature, activation = map(np.array, zip(*cells, strict=True))
    firings = Firings(
        context.astype(np.int64), position.astype(np.int32), feature.astype(np.int32),
        activation.astype(np.float32), np.where(position == 0, KIND_BOS, 0).astype(np.int8),
    )  # fmt: skip
    texts = pa.Table.from_pylist(
        [
            {"corpus": "c", "context": i, "document": f"d{i}", "document_index": i, "part": 0,
             "text": "abc", "n_tokens": 3, "token_ids": [2, 0, 1], "token_starts": [0, 1, 2],
             "roles": [0] * 3, "turns": [0] * 3, "kinds": [KIND_BOS, 0, 0], "metadata": "{}"}
            for i in range(N)
        ],
        SCHEMAS["contexts"],
    )  # fmt: skip
    nearest = [
        {"feature": f, "rank": rank, "other_feature": other, "cosine": cosine}
        for f, others in NEAREST.items() for rank, (other, cosine) in enumerate(others)
    ]  # fmt: skip
    sae = {"sae": "s", "site": "resid_post", "layer": 0, "layers": [0], "width": WIDTH,
           "features_per_layer": WIDTH}  # fmt: skip
    corpus = {"corpus": "c", "tokenizer": "x", "n_contexts": N, "shard_contexts": N,
              "context_ends": [N]}  # fmt: skip
    with Writer(store) as writer:
        receipts = write_contexts(store.root, texts, "c", "r")
        receipts += write_firings(
            store.root, firings, sae="s", corpus="c", shard=0, run="r", bits=23
        )
        receipts.append(
            write_parquet(
                store.root,
                "neighbors",
                pa.Table.from_pylist(nearest, file_schema("neighbors")),
                {"sae": "s", "other_sae": "s"},
                run="r",
            )  # fmt: skip
        )
        other = sae | {"sae": "t"}
        catalogue = {
            "saes": pa.Table.from_pylist([sae, other], SCHEMAS["saes"]),
            "corpora": pa.Table.from_pylist([corpus], SCHEMAS["corpora"]),
        }
        receipts += write_firings(
            store.root, firings, sae="t", corpus="c", shard=0, run="r", bits=23
        )
        writer.commit(receipts, transaction="all", reason="all", rows=catalogue)
    return store, cells


def ask(store, feature, sae="s", **asked):
    (info,) = [s for s in list_saes(store, store.snapshot()) if s.name == sae]
    return contrast_contexts(connect(store, store.snapshot()), info, feature, **asked)


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("corpus", [None, "c"])
def test_it_agrees_with_a_search(lake, k, corpus):
    store, cells = lake
    fired = [cell for cell in cells if cell[1] != 0]
    taken = {c for c, _, f, _ in fired if f == 0}
    most = {f: max(a for _, _, g, a in fired if g == f) for f in (1, 2, 3)}
    best: dict[int, tuple] = {}
    for c, p, f, a in fired:
        if c not in taken and f in most:
            best[c] = min(best.get(c, (0,)), (-a / most[f], f, -a, p))
    ranked = sorted((share, c, f, p, -a) for c, (share, f, a, p) in best.items())[:k]
    found = ask(store, 0, k=k, corpus=corpus).table.to_pylist()
    assert len(ranked) == min(k, len(ranked)) > 0
    assert [(-r["value"], r["context"], r["other_feature"], r["position"], r["activation"])
            for r in found] == ranked  # fmt: skip
    assert [r["rank"] for r in found] == list(range(len(found)))
    for row in found:
        assert row["cosine"] == pytest.approx(dict(NEAREST[0])[row["other_feature"]])
        assert row["activations"][row["position"]] == row["activation"]


def test_where_nothing_contrasts_there_is_nothing(lake):
    store, _ = lake
    full = ask(store, 0)
    for feature in (4, 5):
        # Feature 4 has no neighbors, feature 5 fires in every context.
        none = ask(store, feature)
        assert none.table.num_rows == 0
        assert none.table.schema == full.table.schema
        assert "it fires wherever they do" in str(none)


def test_it_shows_neighbors(lake):
    found = ask(lake[0], 0, k=30)
    text = found.to_text()
    assert text.startswith("feature 0 of s does not fire in these, its nearest ones do\nfeature ")
    assert "feature 1, cosine 0.900" in text
    assert found._repr_html_().count("<table>") == len(
        set(found.table["other_feature"].to_pylist())
    )
    assert len(found.to_pandas()) == found.table.num_rows


def test_the_macro_of_nearest_features_ranks_them(lake):
    connection = connect(lake[0], lake[0].snapshot())
    found = sql(connection, "FROM neighbors('s', 0, k := 2)").to_pylist()
    assert [(r["other_sae"], r["other_feature"]) for r in found] == [("s", 1), ("s", 2)]
    assert [r["cosine"] for r in found] == pytest.approx([0.9, 0.5])
    assert sql(connection, "FROM neighbors('s', 4)").num_rows == 0
    assert sql(connection, "FROM neighbors('s', 5, other_sae := 's')").num_rows == 1
    for query, says in (
        ("FROM neighbors('t', 0)", "nearest features of t were asked for; .* compared with none"),
        (
            "FROM neighbors('s', 0, other_sae := 't')",
            "compared with none of t; run",
        ),
        ("FROM neighbors('s', 9)", "it has features 0 to 5"),
        ("FROM neighbors('s', 0, k := 0)", "k=0"),
        ("FROM neighbors('x', 0)", "named 'x'"),
    ):
        with pytest.raises(QueryError, match=says):
            sql(connection, query)


def test_what_cannot_be_told_is_refused(lake):
    store, _ = lake
    with pytest.raises(NotIngestedError, match=r"nearest features of t .* run add_neighbors"):
        ask(store, 0, sae="t")
    for asked in ({"k": 0}, {"window": -1}):
        with pytest.raises(InvalidArgumentError, match=f"{next(iter(asked))}="):
            ask(store, 0, **asked)
    connection = connect(store, store.snapshot())
    (info,) = [s for s in list_saes(store, store.snapshot()) if s.name == "s"]
    partial = replace(info, partial={"c": Partial(5)})
    with pytest.raises(QueryError, match="contrast"):
        contrast_contexts(connection, partial, 0)
