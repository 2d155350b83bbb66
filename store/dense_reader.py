"""Dense activations read whole: sites of which every shard is stored, context by context."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from scopelake.errors import DamagedFileError, LayerNotFoundError
from scopelake.names import counted
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.dense import DenseArray, StoredSite, dense_filters, find_dense, open_stored
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import ACTIVATIONS, array_name
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot


def find_whole(
    store: LakeStore,
    snapshot: Snapshot,
    layer: int,
    site: str,
    *,
    model: str | None = None,
    corpus: str | None = None,
) -> StoredSite:
    """Return the one array of a site, which has every shard of its corpus in `snapshot`.

    Raises:
        LayerNotFoundError, InvalidArgumentError: as in `find_dense`; or shards are not stored.
    """
    found = find_dense(store, snapshot, layer, site, model=model, corpus=corpus)
    filters = [("corpus", "=", found.corpus)]
    (row,) = store.read("corpora", snapshot, NUMBER_COLUMNS, filters).to_pylist()
    n_shards = ContextNumbers.of(row).n_shards
    rows = store.read("files", snapshot, ["shard"], dense_filters(found))["shard"].to_pylist()
    if missing := sorted(set(range(n_shards)) - set(rows)):
        raise LayerNotFoundError(
            f"all dense activations of {site}/{layer} of {found.model} on {found.corpus} were "
            f"asked for; {len(missing):,} of {counted(n_shards, 'shard')} "
            f"{'is' if len(missing) == 1 else 'are'} not stored, the first is "
            f"{missing[0]}; ingest the corpus with dense {site}/{layer}"
        )
    return found


@dataclass(frozen=True)
class DenseReader:
    """Reads contexts of an array of which every shard is stored."""

    root: Root
    name: str
    array: DenseArray
    """[one more than the highest context, context_length, width]"""

    def read(self, context: int) -> npt.NDArray[ml_dtypes.bfloat16]:
        """Return the activations of one context, [context_length, width].

        Raises:
            DamagedFileError: they are not what was written, or gone.
        """
        try:
            values: npt.NDArray[ml_dtypes.bfloat16] = np.asarray(self.array[context])
        except (ValueError, RuntimeError) as error:  # what zarr and its codecs raise
            raise self._damaged(context, " ".join(str(error).split())) from error
        # A chunk that is not there reads as zeros. The first position always has a token, whose
        # activations are hardly ever all zero: then it is worth a look.
        if not values[0].any():
            shard = context // (self.array.shards or self.array.chunks)[0]
            if self.root.size(f"{ACTIVATIONS}/{self.name}/c/{shard}/0/0") is None:
                raise self._damaged(context, f"shard {shard} is gone")
        return values

    def _damaged(self, context: int, why: str) -> DamagedFileError:
        return DamagedFileError(
            f"context {context} of dense array {self.name} was asked for; it is not what was "
            f"written ({why}); run scopelake verify"
        )


def open_reader(store: LakeStore, snapshot: Snapshot, found: StoredSite) -> DenseReader:
    """Open an array that `find_whole` returned."""
    name = array_name(found.corpus, found.model, found.site, found.layer)
    return DenseReader(store.root, name, open_stored(store, snapshot, found))
