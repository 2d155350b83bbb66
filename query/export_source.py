"""What an export reads of a lake: one coder's firings on one corpus, some features at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import DamagedFileError
from scopelake.names import KIND_BOS
from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo
from scopelake.store.catalog import IMPORTED
from scopelake.store.feature_ranges import RowGroup, row_groups
from scopelake.store.folder_root import FolderRoot
from scopelake.store.integrity import check_files, checked_copies
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import LAKE_FILE, table_folder
from scopelake.store.schema import SCHEMAS, file_schema
from scopelake.store.snapshot import Snapshot

ROWS_AT_ONCE: Final = 1_000_000
"""Firings in memory at once, about 25 MB; a feature that has more comes alone."""

_CONTEXTS_AT_ONCE: Final = 256
_FEATURES_AT_ONCE: Final = 1_024
_LOGITS: Final = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
_FIRING: Final = ("feature", "context", "position", "activation", "kind")

Decode = Callable[[str, str, Sequence[int]], list[str] | None]
"""From a tokenizer's name, its digest and token ids to their texts, if it is here."""

Filter = tuple[str, str, Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """All firings of some features, by feature, context and position."""

    features: Ints
    """Those that it is of, ascending, also those that never fire."""
    feature: npt.NDArray[np.int32]
    context: Ints
    position: npt.NDArray[np.int32]
    activation: npt.NDArray[np.float32]
    kind: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.feature)

    def take(self, which: slice | npt.NDArray[Any], features: Ints) -> Chunk:
        """Return some of the firings, of some of the features."""
        return Chunk(features, *(getattr(self, name)[which] for name in _FIRING))

    def each(self) -> Iterator[tuple[int, Chunk]]:
        """Yield every feature and its firings, BOS left out."""
        spoken = self.take(self.kind != KIND_BOS, self.features)
        low = np.searchsorted(spoken.feature, self.features, "left")
        high = np.searchsorted(spoken.feature, self.features, "right")
        for i, feature in enumerate(self.features):
            of_feature = slice(int(low[i]), int(high[i]))
            yield int(feature), spoken.take(of_feature, self.features[i : i + 1])


@dataclass(frozen=True)
class Logits:
    """Tokens that a feature promotes, most first, and suppresses, most first."""

    top: list[str]
    top_logits: list[float]
    bottom: list[str]
    bottom_logits: list[float]


class ExportSource:
    """One coder on one corpus, all of whose firings are in the lake.

    Args:
        connection: from `connect`.
        store: the lake.
        snapshot: what of it is read.
        decode: what gives token ids their text.
        sae: the coder.
        corpus: its name.
        features: those to export, ascending, each once; None: all.
        rows_at_once: firings in a chunk, unless one feature alone has more.
    """

    def __init__(
        self,
        connection: Connection,
        store: LakeStore,
        snapshot: Snapshot,
        decode: Decode,
        sae: SaeInfo,
        corpus: str,
        features: Sequence[int] | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self.connection, self.store, self.snapshot = connection, store, snapshot
        self.sae, self.corpus = sae, corpus
        self.is_all = features is None
        chosen = np.arange(sae.width) if features is None else np.asarray(features)
        self.features: Ints = chosen.astype(np.int64)
        self._decode, self._rows_at_once = decode, rows_at_once
        self._logits: tuple[int, dict[int, dict[str, Any]]] | None = None
        """The block of features that was read last."""

    # -- firings ---------------------------------------------------------------------------------

    @cached_property
    def n_firings(self) -> Ints:
        """Firings of each feature of the coder, BOS included; 0 of those not exported."""
        return self._counts[0]

    @cached_property
    def n_on_bos(self) -> Ints:
        """How many of them are on BOS."""
        return self._counts[1]

    @cached_property
    def _counts(self) -> tuple[Ints, Ints]:
        """Read two columns of all firings once: the bounds of row groups do not tell."""
        width = self.sae.width
        total, on_bos = np.zeros(width, np.int64), np.zeros(width, np.int64)
        paths, sums = self._files("postings", self._of_both)
        for path in paths:
            with checked_copies(self.store.root, [path], sums) as local:
                for group in row_groups(local, [path]):
                    rows = _read(local, group, ("feature", "kind"))
                    feature = rows["feature"].to_numpy()
                    total += np.bincount(feature, minlength=width)
                    is_bos = rows["kind"].to_numpy() == KIND_BOS
                    on_bos += np.bincount(feature[is_bos], minlength=width)
        chosen = np.zeros(width, bool)
        chosen[self.features] = True
        return np.where(chosen, total, 0), np.where(chosen, on_bos, 0)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the firings, features ascending; every feature is in one chunk, whole."""
        start = 0
        stops = list(self._stops())
        paths, sums = self._files("postings", self._of_both)
        # Every file may have firings of every feature, and is read once a chunk.
        with checked_copies(self.store.root, paths, sums) as local:
            groups = list(row_groups(local, paths))
            for stop in stops:
                yield _chunk(local, groups, self.features[start:stop])
                start = stop

    def _stops(self) -> Iterator[int]:
        """Yield where in `features` each chunk ends."""
        held = 0
        for i, n in enumerate(self.n_firings[self.features]):
            if held and held + int(n) > self._rows_at_once:
                yield i
                held = 0
            held += int(n)
        if len(self.features):
            yield len(self.features)

    @property
    def _of_both(self) -> list[Filter]:
        return [("sae", "=", self.sae.name), ("corpus", "=", self.corpus)]

    def _files(self, table: str, filters: list[Filter]) -> tuple[list[str], Mapping[str, str]]:
        """Return the files of a table, and checksums of those whose name does not carry it."""
        found, sums = self.connection.files(table, filters)
        return [f"{table_folder(table)}/{name}" for name in found["path"].to_pylist()], sums

    # -- contexts --------------------------------------------------------------------------------

    def contexts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the contexts of the corpus, some at a time, in the order of the files.

        Args:
            columns: those to return; all that are in the files by default.
        """
        schema = file_schema("contexts")
        wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
        paths, sums = self._files("contexts", [("corpus", "=", self.corpus)])
        check_files(self.store.root, paths, sums)
        for path in paths:
            with pq.ParquetFile(self.store.root.open(path)) as file:
                there = [name for name in wanted.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(_CONTEXTS_AT_ONCE, columns=there):
                    rows = pa.Table.from_batches([batch])
                    for field in wanted:
                        if field.name not in there:  # a column that older lakes lack
                            nulls = pa.nulls(rows.num_rows, field.type)
                            rows = rows.append_column(field, nulls)
                    yield rows.select(wanted.names).cast(wanted)

    @cached_property
    def numbers(self) -> Ints:
        """The contexts of the corpus, ascending; there may be gaps."""
        found = [rows["context"].to_numpy() for rows in self.contexts(["context"])]
        numbers: Ints = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
        if len(numbers) != self.corpus_row["n_contexts"]:
            raise DamagedFileError(
                f"the {self.corpus_row['n_contexts']:,} contexts of corpus {self.corpus!r} were to "
                f"be read; {len(numbers):,} are there; run scopelake verify"
            )
        return numbers

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the corpus, BOS left out."""
        row = self.corpus_row
        # In lakes of older formats every context begins with BOS.
        n_bos = row["n_contexts"] if row["n_bos"] is None else row["n_bos"]
        return int(row["n_tokens"] - n_bos)

    # -- what is known beside --------------------------------------------------------------------

    def statistics(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield rows of the features table, those of the features that are exported."""
        for start in range(0, len(self.features), _FEATURES_AT_ONCE):
            some = self.features[start : start + _FEATURES_AT_ONCE]
            filters = [("sae", "=", self.sae.name), ("corpus", "=", self.corpus),
                       ("feature", "in", some.tolist())]  # fmt: skip
            yield self.connection.rows("features", list(columns), filters).sort_by("feature")

    def logits(self, feature: int) -> Logits:
        """Return what a feature promotes and suppresses; nothing if that was not computed.

        Features are asked for one after the other: some more are read at once, and kept.
        """
        block = int(np.searchsorted(self.features, feature)) // _FEATURES_AT_ONCE
        if self._logits is None or self._logits[0] != block:
            some = self.features[block * _FEATURES_AT_ONCE :][:_FEATURES_AT_ONCE]
            filters = [("sae", "=", self.sae.name), ("corpus", "=", self.corpus),
                       ("feature", "in", some.tolist())]  # fmt: skip
            rows = self.connection.rows("features", ["feature", *_LOGITS], filters).to_pylist()
            self._logits = block, {row["feature"]: row for row in rows}
        row = self._logits[1].get(feature, {})
        top, top_logits, bottom, bottom_logits = (row.get(name) or [] for name in _LOGITS)
        return Logits(self.token_texts(top), top_logits, self.token_texts(bottom), bottom_logits)

    def place(self, feature: int) -> tuple[int, int]:
        """Return the layer of a feature, and its number in it."""
        layers = self.sae_row["layers"]
        n = self.sae_row["features_per_layer"] or self.sae.width
        return layers[feature // n], feature % n

    def labels(self) -> pa.Table:
        """Return feature, label, source of the features that are exported, in this order."""
        filters = [("sae", "=", self.sae.name)]
        columns = ["feature", "label", "source"]
        rows = self.store.read("labels", self.snapshot, columns, filters)
        rows = rows.filter(pa.array(np.isin(rows["feature"].to_numpy(), self.features), pa.bool_()))
        return rows.sort_by([(c, "ascending") for c in ("feature", "source", "label")])

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of tokens, or ``#id`` where the tokenizer is not on this machine."""
        row = self.corpus_row
        texts = self._decode(row["tokenizer"], row["tokenizer_digest"], ids) if ids else []
        return [f"#{i}" for i in ids] if texts is None else texts

    @cached_property
    def has_texts(self) -> bool:
        """Whether the tokenizer is on this machine."""
        row = self.corpus_row
        return self._decode(row["tokenizer"], row["tokenizer_digest"], [0]) is not None

    @cached_property
    def corpus_row(self) -> Mapping[str, Any]:
        """What the catalogue says of the corpus."""
        return self._row("corpora", "corpus", self.corpus)

    @cached_property
    def sae_row(self) -> Mapping[str, Any]:
        """What the catalogue says of the coder."""
        return self._row("saes", "sae", self.sae.name)

    @cached_property
    def model(self) -> str | None:
        """The model that ran; what the coder was made for, if no run tells."""
        filters = [("corpus", "=", self.corpus), ("state", "!=", IMPORTED)]
        rows = self.store.read("runs", self.snapshot, ["saes", "model"], filters).to_pylist()
        ran = [r["model"] for r in rows if self.sae.name in r["saes"] and r["model"] is not None]
        model: str | None = ran[0] if ran else self.sae_row["model"]
        return model

    def facts(self) -> dict[str, Any]:
        """Return what every export says of where it is from: names and digests."""
        corpus, sae = self.corpus_row, self.sae_row
        model = {} if self.model is None else self._row("models", "model", self.model)
        return {
            "sae": self.sae.name,
            "sae_digest": sae["digest"],
            "sae_type": sae["type"],
            "site": sae["site"],
            "layers": sae["layers"],
            "width": self.sae.width,
            "features": "all" if self.is_all else self.features.tolist(),
            "corpus": self.corpus,
            "corpus_source": corpus["source"],
            "corpus_digest": corpus["source_digest"],
            "n_contexts": corpus["n_contexts"],
            "n_tokens": corpus["n_tokens"],
            "tokenizer": corpus["tokenizer"],
            "tokenizer_digest": corpus["tokenizer_digest"],
            "model": self.model,
            "model_revision": model.get("revision"),
            "model_digest": model.get("digest"),
            "lake": json.loads(self.store.root.read(LAKE_FILE))["lake_id"],
            "snapshot": self.snapshot.id,
        }

    def _row(self, table: str, key: str, value: str) -> Mapping[str, Any]:
        rows = self.store.read(table, self.snapshot, filters=[(key, "=", value)]).to_pylist()
        return rows[0] if rows else {}


def _chunk(local: FolderRoot, groups: Sequence[RowGroup], features: Ints) -> Chunk:
    parts: list[pa.Table] = []
    for group in groups:
        low = np.searchsorted(features, group.low, "left")
        if low == np.searchsorted(features, group.high, "right"):
            continue
        rows = _read(local, group, _FIRING)
        keep = np.isin(rows["feature"].to_numpy(), features)
        parts.append(rows if keep.all() else rows.filter(pa.array(keep)))
    schema = pa.schema([SCHEMAS["postings"].field(name) for name in _FIRING])
    rows = pa.concat_tables([schema.empty_table(), *(p.cast(schema) for p in parts)])
    columns = [rows[name].to_numpy() for name in _FIRING]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return Chunk(features, *(column[order] for column in columns))


def _read(local: FolderRoot, group: RowGroup, columns: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(local.open(group.path)) as file:
        return file.read_row_group(group.index, columns=list(columns))
