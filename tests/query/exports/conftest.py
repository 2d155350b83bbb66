"""A lake whose rows the tests know, with what an export needs of its catalogue."""

import shutil
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scopelake.query.connect import Connection, connect
from scopelake.query.export_source import ExportSource
from scopelake.query.resolve import SaeInfo
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import file_schema
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import write_firings, write_labels

LENGTH = 12
HALF = "gs-2/resid_post/half"
LABELS = [(0, "b", "me"), (0, "c", "you"), (5, "a", "me")]


@dataclass
class Known:
    """A lake, an SAE of it, and what of it every export has to hold."""

    store: LakeStore
    snapshot: Snapshot
    connection: Connection
    contexts: dict[tuple[str, int], Any]
    rows: list[Any]
    sae: SaeInfo

    def expected(self, corpus, features=None, *, bos=True):
        """By feature and context, the activation at each position."""
        found = defaultdict(lambda: defaultdict(dict))
        for row in self.rows:
            if (
                (row.sae, row.corpus) == (self.sae.name, corpus)
                and (features is None or row.feature in features)
                and (bos or row.kind != "bos")
            ):
                found[row.feature][row.context][row.position] = row.activation
        return {feature: dict(contexts) for feature, contexts in found.items()}

    def of_corpus(self, corpus):
        """The contexts of a corpus, in order."""
        return [c for (name, _), c in sorted(self.contexts.items()) if name == corpus]


def changed(table, **values):
    """A catalogue table with other values in some columns, a list or the same for all rows."""
    for name, value in values.items():
        field = table.schema.field(name)
        column = value if isinstance(value, list) else [value] * table.num_rows
        at = table.schema.get_field_index(name)
        table = table.set_column(at, field, pa.array(column, field.type))
    return table


@pytest.fixture(scope="session")
def known(counted, tmp_path_factory):
    """The lake of known rows, with what an export needs of its catalogue, and half an ingest."""
    path = tmp_path_factory.mktemp("export") / "lake"
    store = LakeStore.open(shutil.copytree(counted.store.root.url, path))
    snapshot = store.snapshot()
    corpora = store.read("corpora", snapshot)
    n_bos = [
        sum(c.kinds.count(2) for c in counted.contexts.values() if c.corpus == name)
        for name in corpora["corpus"].to_pylist()
    ]
    corpora = changed(corpora, context_length=LENGTH, n_bos=n_bos, source="known.txt")
    saes = changed(store.read("saes", snapshot), digest="xxh3:abc")
    saes = pa.concat_tables([saes, changed(saes.slice(0, 1), sae=HALF)])
    one = Firings(
        np.array([3]), np.array([1], np.int32), np.array([2], np.int32),
        np.array([1.0], np.float32), np.array([0], np.int8),
    )  # fmt: skip
    labels = pa.Table.from_pylist(
        [dict(zip(("feature", "label", "source"), row, strict=True)) for row in LABELS],
        schema=file_schema("labels"),
    )
    with Writer(store) as writer:
        rows = {"corpora": corpora, "saes": saes}
        keys = {"corpora": ("corpus",), "saes": ("sae",)}
        writer.commit([], transaction="facts", reason="facts", rows=rows, replace=keys)
        receipts = write_firings(
            store.root, one, sae=HALF, corpus="plain", shard=0, run="r", bits=23
        )
        receipts.append(write_labels(store.root, labels, counted.sae().name))
        writer.commit(receipts, transaction="half", reason="half")
    connection = connect(store, store.snapshot())
    yield Known(store, store.snapshot(), connection, counted.contexts, counted.rows, counted.sae())
    connection.close()


@pytest.fixture(scope="session")
def source_of(known):
    """What makes an export's source of the known lake."""

    def make(corpus="chats", features=None, decode=lambda name, digest, ids: None, **asked):
        return ExportSource(
            known.connection, known.store, known.snapshot, decode, known.sae, corpus, features,
            **asked,
        )  # fmt: skip

    return make
