"""Labels come into the lake and leave it: whole files of rows, in one commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa

from scopelake.errors import (
    CoderMismatchError,
    FeatureNotFoundError,
    InvalidArgumentError,
    LabelSourceError,
    LakeBusyError,
    SaeNotFoundError,
)
from scopelake.ingest.coder_identity import plain_model
from scopelake.ingest.label_files import Labelled
from scopelake.names import counted, shortened, visible
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_labels

_KEYS: Final = ("feature", "source", "label")
_CODER: Final = ("sae", "layers", "features_per_layer", "width", "model")

Key = tuple[int, str, str]
"""feature, source, label"""


@dataclass(frozen=True)
class AddedLabels:
    """What was added."""

    snapshot: int
    n_labels: int
    """That are new in the lake."""
    n_features: int
    """That have one of these."""
    n_repeated: int
    """Rows that say the same as an earlier one; each was taken once."""
    n_already: int
    """That the lake had."""
    n_replaced: int
    """That left the lake."""
    sources: tuple[str, ...]
    saes: tuple[str, ...]

    def to_text(self) -> str:
        """Return it as a line."""
        said = [f"{counted(self.n_labels, 'label')} of {counted(self.n_features, 'feature')}"]
        said += [f"{self.n_replaced:,} replaced"] if self.n_replaced else []
        said += [f"{self.n_already:,} there already"] if self.n_already else []
        said += [f"{self.n_repeated:,} given more than once"] if self.n_repeated else []
        return (
            f"{', '.join(said)}; source {visible(shortened(self.sources))}; {shortened(self.saes)} "
            f"(snapshot {self.snapshot})"
        )

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "<br>".join(map(escape, self.to_text().splitlines()))


@dataclass(frozen=True)
class RemovedLabels:
    """What left the lake."""

    snapshot: int
    n_labels: int
    source: str
    saes: tuple[str, ...]

    def to_text(self) -> str:
        """Return it as a line."""
        return (
            f"{counted(self.n_labels, 'label')} of source {visible(self.source)} taken out; "
            f"{shortened(self.saes)} (snapshot {self.snapshot})"
        )

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "<br>".join(map(escape, self.to_text().splitlines()))


def add_labels(
    store: LakeStore,
    rows: Iterable[Labelled],
    *,
    sae: str | None,
    name: str | None,
    replace: bool,
) -> AddedLabels:
    """Commit labels: all of them, or, if one is refused, none.

    Args:
        store: the lake.
        rows: the labels.
        sae: full name of the coder that they are of; None: each row names its own.
        name: what the column ``source`` says; None: what the rows say.
        replace: labels of the same coders and sources leave the lake.

    Raises:
        SaeNotFoundError, FeatureNotFoundError: the lake has no such coder, or it no such feature.
        LabelSourceError: a row names no coder, and `sae` is None.
        CoderMismatchError: a row is of another coder, model or layer than `sae`.
        LakeBusyError: another writer has changed these coders' labels meanwhile.
    """
    with Writer(store) as writer:
        snapshot = store.snapshot()
        given, n_rows = _by_coder(_coders(store, snapshot), rows, sae, name)
        change = _Change(writer, snapshot)
        n_new = n_already = n_replaced = 0
        for coder, keys in given.items():
            there = change.there(coder)
            sources = {source for _, source, _ in keys}
            kept = {k for k in there if not (replace and k[1] in sources)}
            n_new += len(keys - there)
            n_already += len(keys & there)
            n_replaced += len(there - kept - keys)
            change.set(coder, kept | keys)
        sources_of_all = sorted({source for keys in given.values() for _, source, _ in keys})
        latest = change.commit(f"labels of {shortened(sources_of_all)}")
    n_given = sum(map(len, given.values()))
    n_features = sum(len({feature for feature, _, _ in keys}) for keys in given.values())
    return AddedLabels(
        latest.id, n_new, n_features, n_rows - n_given, n_already, n_replaced,
        tuple(sources_of_all), tuple(sorted(given)),
    )  # fmt: skip


def remove_labels(store: LakeStore, source: str, sae: str | None = None) -> RemovedLabels:
    """Take labels out by who gave them; older snapshots keep them.

    Args:
        store: the lake.
        source: what their column ``source`` says.
        sae: only those of the coder of this full name.

    Raises:
        InvalidArgumentError: there are none.
        LakeBusyError: another writer has changed these coders' labels meanwhile.
    """
    with Writer(store) as writer:
        snapshot = store.snapshot()
        change = _Change(writer, snapshot)
        coders = sorted({f.partition["sae"] for f in store.data_files("labels", snapshot)})
        gone: dict[str, int] = {}
        known: set[str] = set()
        for coder in [c for c in coders if sae in (None, c)]:
            there = change.there(coder)
            kept = {key for key in there if key[1] != source}
            known |= {key[1] for key in there}
            if len(kept) < len(there):
                gone[coder] = len(there) - len(kept)
                change.set(coder, kept)
        if not gone:
            raise InvalidArgumentError(
                f"labels of source {source!r} were to be removed; the lake has those of "
                f"{shortened(sorted(known)) or 'none'}; choose one of them"
            )
        latest = change.commit(f"without labels of {source}")
    return RemovedLabels(latest.id, sum(gone.values()), source, tuple(gone))


class _Change:
    """Files of labels, one for each coder, that take the place of those there."""

    def __init__(self, writer: Writer, snapshot: Snapshot) -> None:
        self._writer, self._snapshot = writer, snapshot
        self._new: dict[str, set[Key]] = {}

    def there(self, coder: str) -> set[Key]:
        """Return the labels that a coder has."""
        store = self._writer.store
        rows = store.read("labels", self._snapshot, _KEYS, [("sae", "=", coder)])
        return set(zip(*(rows[c].to_pylist() for c in _KEYS), strict=True))

    def set(self, coder: str, keys: set[Key]) -> None:
        """Say which labels a coder shall have."""
        if keys != self.there(coder):
            self._new[coder] = keys

    def commit(self, reason: str) -> Snapshot:
        """Make it so."""
        if not self._new:
            return self._snapshot
        store = self._writer.store
        receipts: list[Receipt] = []
        try:
            for coder, keys in self._new.items():
                if keys:
                    receipts.append(write_labels(store.root, _table(keys), coder))
        except BaseException:
            discard(store.root, receipts)
            raise
        before = {coder: _files(store, self._snapshot, coder) for coder in self._new}
        try:
            return self._writer.commit(
                receipts,
                transaction=f"labels:{uuid4().hex}",
                reason=reason,
                retire=[path for paths in before.values() for path in paths],
                revise=partial(_check_still_so, store, before),
            )
        except LakeBusyError:
            # After any other error it may have been decided on, and is finished by others.
            discard(store.root, receipts)
            raise


def _files(store: LakeStore, snapshot: Snapshot, coder: str) -> list[str]:
    return [file.path for file in store.data_files("labels", snapshot, sae=coder)]


def _check_still_so(
    store: LakeStore, before: Mapping[str, Sequence[str]], commit: Commit, snapshot: Snapshot
) -> Commit:
    """Refuse what was made of labels that have changed since."""
    for coder, paths in before.items():
        if _files(store, snapshot, coder) != paths:
            raise LakeBusyError(
                f"labels of {coder} were to be changed; another writer has changed them meanwhile; "
                "do it again"
            )
    return commit


def _table(keys: set[Key]) -> pa.Table:
    feature, source, label = zip(*sorted(keys), strict=True)
    columns = {"feature": feature, "label": label, "source": source}
    return pa.table({n: pa.array(columns[n], SCHEMAS["labels"].field(n).type) for n in columns})


def _coders(store: LakeStore, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    return {row["sae"]: row for row in store.read("saes", snapshot, _CODER).to_pylist()}


def _by_coder(
    coders: Mapping[str, dict[str, Any]],
    rows: Iterable[Labelled],
    sae: str | None,
    name: str | None,
) -> tuple[dict[str, set[Key]], int]:
    """Return the labels of each coder, each once, and how many rows there were."""
    found: dict[str, set[Key]] = {}
    n = 0
    for row in rows:
        n += 1  # noqa: SIM113
        coder = coders[_coder_of(row, coders, sae)]
        key = (_place(row, coder), row.source if name is None else name, row.label)
        found.setdefault(coder["sae"], set()).add(key)
    return found, n


def _coder_of(row: Labelled, coders: Mapping[str, Any], sae: str | None) -> str:
    named = sae or row.sae
    if named is None:
        raise LabelSourceError(
            f"{row.where} was to be read; it names no SAE; give sae=, or a column 'sae'"
        )
    if row.sae not in (None, named):
        raise CoderMismatchError(
            f"labels of {named} were to be read; {row.where} is of {row.sae}; leave sae out to "
            "take each row's own, or leave those rows out"
        )
    if named not in coders:
        raise SaeNotFoundError(
            f"{row.where} is of the SAE {named!r}; the lake has "
            f"{shortened(sorted(coders)) or 'none'}; give one of their full names"
        )
    return named


def _place(row: Labelled, coder: Mapping[str, Any]) -> int:
    """Return the feature's number in the lake.

    Neuronpedia numbers the features of a cross-layer transcoder anew in each of its layers.
    """
    width = int(coder["width"])
    if row.origin is None:
        first, n = 0, width
    else:
        layers = list(coder["layers"])
        _check_origin(row, coder, layers)
        n = int(coder["features_per_layer"] or width)
        first = layers.index(row.origin.layer) * n if n < width else 0
    if not 0 <= row.feature < n:
        raise FeatureNotFoundError(
            f"{row.where} is of feature {row.feature}; {coder['sae']} has features 0 to {n - 1}"
            f"{'' if n == width else ' in each layer'}; is it of another SAE?"
        )
    return first + row.feature


def _check_origin(row: Labelled, coder: Mapping[str, Any], layers: Sequence[int]) -> None:
    """Refuse Neuronpedia's explanations of another model or layer."""
    assert row.origin is not None
    theirs, ours = row.origin.model, coder["model"]
    if ours is not None and _plain(theirs) != _plain(ours):
        raise CoderMismatchError(
            f"labels of {coder['sae']}, of model {ours}, were to be read; {row.where} is of model "
            f"{theirs}; give that model's export, or, if they are the same, columns feature and "
            "label alone"
        )
    if row.origin.layer not in layers:
        raise CoderMismatchError(
            f"labels of {coder['sae']}, of layer {', '.join(map(str, layers))}, were to be read; "
            f"{row.where} is of {row.origin.source}; give the export of that layer"
        )


def _plain(model: str) -> str:
    """Return what Neuronpedia calls a model: it leaves out ``-pt``."""
    return plain_model(model).removesuffix("-pt")
