"""A small random lake, built with the store's own writers, and an oracle that knows its rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from tests.query.oracle import World
from tests.query.random_lake import draw_world, write_lake

import scopelake
from scopelake.names import KINDS
from scopelake.query.connect import connect
from scopelake.query.resolve import SaeInfo
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.summary import feature_statistics
from scopelake.store.writer import write_contexts, write_features, write_firings

WIDTH = 12
SAES = {
    "gs-2/resid_post/layer_1_width_12": ("resid_post", 1),
    "gs-2/resid_post/layer_2_width_12": ("resid_post", 2),
    "gs-2/mlp_out/layer_2_width_12": ("mlp_out", 2),
}
PIECES = ("the", " cat", "\n", "é", "日本", "<b>", " & ", "'q\"", "", "🙂", " sat", "\x1b[31m")
CONTEXTS = {"plain": 400, "chats": 37}
SHARD = 150


@dataclass
class Context:
    """A context as the oracle knows it."""

    corpus: str
    context: int
    document: str
    pieces: list[str]
    roles: list[int]
    turns: list[int]
    kinds: list[int]
    metadata: str

    @property
    def shown(self) -> list[str]:
        """Pieces, with the sign that stands for the BOS of plain text."""
        bos = KINDS.index("bos")
        return [
            "<bos>" if k == bos and not p else p
            for p, k in zip(self.pieces, self.kinds, strict=True)
        ]


@dataclass
class Row:
    """A firing as the oracle knows it."""

    sae: str
    corpus: str
    context: int
    position: int
    feature: int
    activation: float
    kind: str


@dataclass
class Built:
    """A lake, what is in it, and its connection."""

    store: LakeStore
    snapshot: Snapshot
    connection: duckdb.DuckDBPyConnection
    contexts: dict[tuple[str, int], Context]
    rows: list[Row]

    def sae(self, layer: int = 1, site: str = "resid_post") -> SaeInfo:
        """The SAE at a place."""
        name = f"gs-2/{site}/layer_{layer}_width_{WIDTH}"
        return SaeInfo(name, site, (layer,), WIDTH)


def make_contexts(rng: np.random.Generator) -> list[Context]:
    """Contexts of 1 to 12 tokens; chats have roles, turns and a BOS that is in the text."""
    made = []
    for corpus, n in CONTEXTS.items():
        chat = corpus == "chats"
        for context in range(n):
            m = int(rng.integers(1, 12))
            pieces = ["<bos>" if chat else ""] + [str(rng.choice(PIECES)) for _ in range(m)]
            roles = [0] + [int(r) if chat else 0 for r in rng.integers(1, 3, m)]
            kinds = [2] + [int(r) if chat else 0 for r in rng.integers(0, 2, m)]
            turns = [0] + [i // 3 if chat else 0 for i in range(m)]
            document, metadata = f"doc-{context // 2}", f'{{"lang": "l{context % 3}"}}'
            made.append(Context(corpus, context, document, pieces, roles, turns, kinds, metadata))
    return made


def contexts_table(contexts: list[Context]) -> pa.Table:
    """The rows of the contexts table for `contexts`."""
    rows = [
        {
            "corpus": c.corpus,
            "context": c.context,
            "document": c.document,
            "document_index": c.context // 2,
            "part": c.context % 2,
            "char_start": 0,
            "char_end": len("".join(c.pieces)),
            "text": "".join(c.pieces),
            "n_tokens": len(c.pieces),
            "token_ids": [PIECES.index(p) if p in PIECES else 99 for p in c.pieces],
            "token_starts": [len("".join(c.pieces[:i])) for i in range(len(c.pieces))],
            "roles": c.roles,
            "turns": c.turns,
            "kinds": c.kinds,
            "metadata": c.metadata,
        }
        for c in contexts
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])


def make_firings(rng: np.random.Generator, contexts: list[Context]) -> Firings:
    """Firings with many ties; feature 11 never fires, feature 0 fires in nearly every context."""
    columns: list[tuple[int, int, int, float, int]] = []
    for c in contexts:
        for position, kind in enumerate(c.kinds):
            for feature in range(WIDTH - 1):
                if rng.random() < (0.6 if feature == 0 else 0.12):
                    activation = float(rng.choice([0.5, 1.0, 1.5, 2.0, 70000.0]))
                    columns.append((c.context, position, feature, activation, kind))
    array = list(zip(*columns, strict=True)) if columns else [()] * 5
    types = (np.int64, np.int32, np.int32, np.float32, np.int8)
    return Firings(*(np.array(values, t) for values, t in zip(array, types, strict=True)))


def filled(table: str, **known: Any) -> dict[str, Any]:
    """A catalogue row: what is known, and a value of the right type for the rest."""
    row: dict[str, Any] = {}
    for field in SCHEMAS[table]:
        if pa.types.is_integer(field.type):
            row[field.name] = 0
        elif pa.types.is_string(field.type):
            row[field.name] = "x"
        else:
            row[field.name] = None
    return row | known


def table_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows in a table's schema."""
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])


def catalogue(contexts: list[Context]) -> dict[str, pa.Table]:
    """Rows of corpora, models and saes."""
    corpora = [
        filled("corpora", corpus=name, n_contexts=n, shard_contexts=SHARD,
               n_documents=-(-n // 2),
               n_tokens=sum(len(c.pieces) for c in contexts if c.corpus == name))
        for name, n in CONTEXTS.items()
    ]  # fmt: skip
    saes = [
        filled(
            "saes",
            sae=name,
            site=site,
            layer=layer,
            layers=[layer],
            features_per_layer=WIDTH,
            width=WIDTH,
        )  # fmt: skip
        for name, (site, layer) in SAES.items()
    ]
    return {
        "corpora": table_of("corpora", corpora),
        "models": table_of("models", [filled("models", model="tiny")]),
        "saes": table_of("saes", saes),
    }


def write_shards(writer: Writer, rng: np.random.Generator, contexts: list[Context]) -> list[Row]:
    """Commit the firings of every SAE, corpus and shard; return them."""
    rows: list[Row] = []
    root = writer.store.root
    for sae in SAES:
        for corpus, n in CONTEXTS.items():
            for shard, start in enumerate(range(0, n, SHARD)):
                of_shard = [
                    c for c in contexts
                    if c.corpus == corpus and start <= c.context < start + SHARD
                ]  # fmt: skip
                firings = make_firings(rng, of_shard)
                writer.commit(
                    write_firings(root, firings, sae=sae, corpus=corpus, shard=shard, run="r",
                                  bits=23),
                    transaction=f"{sae}:{corpus}:{shard}", reason="shard", run="r",
                )  # fmt: skip
                columns = (firings.context, firings.position, firings.feature, firings.activation,
                           firings.kind)  # fmt: skip
                rows += [
                    Row(sae, corpus, int(c), int(p), int(f), float(a), KINDS[k])
                    for c, p, f, a, k in zip(*columns, strict=True)
                ]
    return rows


def write_statistics(writer: Writer, sae: str, corpus: str) -> None:
    """Commit the features rows of one SAE on one corpus."""
    store = writer.store
    files = store.data_files("postings", store.snapshot(), sae=sae, corpus=corpus)
    table = feature_statistics(store.root, [f.path for f in files], WIDTH, 1000)
    for name in SCHEMAS["features"].names[-6:]:
        field = SCHEMAS["features"].field(name)
        table = table.append_column(field, pa.nulls(WIDTH, field.type))
    receipt = write_features(store.root, table, sae, corpus, "r")
    writer.commit([receipt], transaction=f"features:{sae}:{corpus}", reason="features", run="r")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A lake of two corpora, three SAEs and shards of 150 contexts; its path needs quoting."""
    rng = np.random.default_rng(5)
    store = LakeStore.create(tmp_path_factory.mktemp("query") / "it's a lake é")
    contexts = make_contexts(rng)
    with Writer(store) as writer:
        receipts = []
        for corpus in CONTEXTS:
            of_corpus = [c for c in contexts if c.corpus == corpus]
            receipts += write_contexts(store.root, contexts_table(of_corpus), corpus, "r")
        writer.commit(receipts, transaction="contexts", reason="contexts",
                      rows=catalogue(contexts))  # fmt: skip
        rows = write_shards(writer, rng, contexts)
        write_statistics(writer, next(iter(SAES)), "plain")
    snapshot = store.snapshot()
    connection = connect(store, snapshot)
    by_key = {(c.corpus, c.context): c for c in contexts}
    yield Built(store, snapshot, connection, by_key, rows)
    connection.close()


@pytest.fixture(scope="session")
def counted(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The same lake with the statistics of every SAE on every corpus."""
    path = tmp_path_factory.mktemp("counted") / "lake"
    store = LakeStore.open(shutil.copytree(built.store.root.url, path))
    with Writer(store) as writer:
        for sae in SAES:
            for corpus in CONTEXTS:
                if not store.data_files("features", store.snapshot(), sae=sae, corpus=corpus):
                    write_statistics(writer, sae, corpus)
    snapshot = store.snapshot()
    connection = connect(store, snapshot)
    yield Built(store, snapshot, connection, built.contexts, built.rows)
    connection.close()


@pytest.fixture(scope="session")
def random_lake(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], tuple[World, scopelake.Lake]]:
    """Random lakes by seed, each made once, with all that is in them."""

    @cache
    def made(seed: int) -> tuple[World, scopelake.Lake]:
        world = draw_world(seed)
        return world, write_lake(world, tmp_path_factory.mktemp("random") / "lake")

    return made
