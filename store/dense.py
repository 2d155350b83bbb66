"""Dense activations: one bfloat16 Zarr array per corpus, model, site and layer.

An array is [context, position, width]; a chunk is one context and the unit of random reads, a
Zarr shard is one shard of the corpus and the unit of writes. Chunks of shards that are not
committed, and positions behind a context's end, read as zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import ml_dtypes
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.errors import ArrayNotFoundError, ContainsArrayError

from scopelake.errors import InvalidArgumentError, LayerNotFoundError
from scopelake.names import SITES, check_name
from scopelake.store.bfloat16 import BFLOAT16
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import ACTIVATIONS, DENSE, array_name
from scopelake.store.receipts import Receipt, checksum_of
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot

DenseArray = zarr.Array[Any]

COMPRESSORS: Final = (ZstdCodec(level=1), Crc32cCodec())
"""Of a chunk; see docs/performance.md for what others measured."""

# A shard of zeros needs a file too: its receipt names one.
_SETTINGS: Final = {"array.write_empty_chunks": True}


def ensure_array(
    root: Root,
    corpus: str,
    model: str,
    site: str,
    layer: int,
    n_contexts: int,
    context_length: int,
    width: int,
    shard_contexts: int,
) -> DenseArray:
    """Return the array of a site, made if it is not there: [n_contexts, context_length, width].

    One of fewer contexts, of before documents were appended, grows; one of more stays.

    Raises:
        InvalidArgumentError: a size or name is not usable, or the array is there with other sizes.
    """
    _check_site(corpus, site, layer)
    shape = (n_contexts, context_length, width)
    if min(*shape, shard_contexts) < 1:
        raise InvalidArgumentError(
            f"a dense array {list(shape)} in shards of {shard_contexts} contexts was asked for; "
            "every size is 1 or more"
        )
    shards = (shard_contexts, context_length, width)
    name = array_name(corpus, model, site, layer)
    found = _open(root, name, "r+")
    if found is None:
        try:
            return _create(root, name, shape, shards)
        except ContainsArrayError:  # another writer made it in this moment
            found = _existing(root, name, "r+")
    if found.shape[1:] != shape[1:] or found.shards != shards:
        raise InvalidArgumentError(
            f"dense array {name} was asked for as {list(shape)} in shards {list(shards)}; it is "
            f"{list(found.shape)} in shards {list(found.shards or ())}; use the same sizes"
        )
    if found.shape[0] < n_contexts:
        found.resize(shape)
    return found


def write_shard(
    root: Root,
    corpus: str,
    model: str,
    site: str,
    layer: int,
    context_start: int,
    values: npt.NDArray[ml_dtypes.bfloat16],
    *,
    shard: int,
    run: str,
) -> Receipt:
    """Write one shard of an array that `ensure_array` made.

    Args:
        root: the lake's.
        corpus: the corpus's name.
        model: the model's name.
        site: where in the layer.
        layer: from 0.
        context_start: first context of the shard.
        values: [contexts of the shard, context_length, width]; fewer contexts where a shard is not
            full.
        shard: number of the shard.
        run: the run that writes.

    Returns:
        The receipt of the shard's file; its rows are contexts.

    Raises:
        InvalidArgumentError: `values` is not that shard, whole.
        LayerNotFoundError: there is no such array.
    """
    name = array_name(corpus, model, site, layer)
    array = _existing(root, name, "r+")
    per_shard = (array.shards or array.chunks)[0]
    stop = min((shard + 1) * per_shard, array.shape[0])
    wanted = (stop - shard * per_shard, *array.shape[1:])
    fits = values.shape[1:] == wanted[1:] and 1 <= len(values) <= wanted[0]
    if not fits or values.dtype != BFLOAT16 or context_start != shard * per_shard:
        raise InvalidArgumentError(
            f"shard {shard} of dense array {name} is bfloat16{list(wanted)} from context "
            f"{shard * per_shard}; {values.dtype}{list(values.shape)} from {context_start} was "
            "given; give the whole shard"
        )
    path = f"{ACTIVATIONS}/{name}/c/{shard}/0/0"
    n_bytes, digest = _put_shard(root, array, values, path)
    return Receipt(
        table=DENSE,
        path=path,
        run=run,
        n_rows=len(values),
        n_bytes=n_bytes,
        checksum=digest,
        shard=shard,
        corpus=corpus,
        model=model,
        site=site,
        layer=layer,
    )


def _put_shard(
    root: Root, array: DenseArray, values: npt.NDArray[ml_dtypes.bfloat16], path: str
) -> tuple[int, str]:
    """Put a shard in its place whole: another writer may be at the same one, or read it.

    It is made as the only shard of an array of its own, whose bytes are the same.

    Returns:
        Its bytes and their checksum.
    """
    shards = _shard_shape(array)
    with root.scratch() as folder:
        local = FolderRoot(folder)
        with _settings(local):
            store = local.zarr("array", read_only=False)
            scratch = zarr.create_array(store, zarr_format=3, **array_format(shards, shards))
            scratch[: len(values)] = values
        made = folder / "array" / "c" / "0" / "0" / "0"
        n_bytes = made.stat().st_size
        # The disk is waited for while the bytes are hashed.
        with made.open("rb") as file, ThreadPoolExecutor(1) as pool:
            digest = pool.submit(checksum_of, file)
            root.put(path, made)
            return n_bytes, digest.result()


def open_array(root: Root, corpus: str, model: str, site: str, layer: int) -> DenseArray:
    """Open an array read-only: bfloat16 [context, position, width].

    Raises:
        LayerNotFoundError: there is no such array.
    """
    return _existing(root, array_name(corpus, model, site, layer), "r")


@dataclass(frozen=True)
class StoredSite:
    """A site of which a lake has dense activations."""

    corpus: str
    model: str
    site: str
    layer: int


def open_dense(
    store: LakeStore,
    snapshot: Snapshot,
    layer: int,
    site: str,
    *,
    model: str | None = None,
    corpus: str | None = None,
) -> DenseArray:
    """Open the one array of a site that has shards in `snapshot`, read-only.

    Raises:
        LayerNotFoundError, InvalidArgumentError: as in `find_dense`.
    """
    found = find_dense(store, snapshot, layer, site, model=model, corpus=corpus)
    return open_stored(store, snapshot, found)


def find_dense(
    store: LakeStore,
    snapshot: Snapshot,
    layer: int,
    site: str,
    *,
    model: str | None = None,
    corpus: str | None = None,
) -> StoredSite:
    """Return the one array of a site that has shards in `snapshot`.

    Raises:
        LayerNotFoundError: no array fits; the message lists those that there are.
        InvalidArgumentError: several fit; the message lists them.
    """
    rows = store.read(
        "files", snapshot, ["corpus", "model", "site", "layer"], [("kind", "=", DENSE)]
    ).to_pylist()
    there = sorted({(r["corpus"], r["model"], r["site"], r["layer"]) for r in rows})
    fitting = [
        key
        for key in there
        if key[2:] == (site, layer) and model in (None, key[1]) and corpus in (None, key[0])
    ]
    if not fitting:
        choose = "choose one of them or " if there else ""
        raise LayerNotFoundError(
            f"dense activations of {_asked(site, layer, model, corpus)} were asked for; snapshot "
            f"{snapshot.id} has {_listed(there)}; {choose}ingest with dense {site}/{layer}"
        )
    if len(fitting) > 1:
        raise InvalidArgumentError(
            f"dense activations of {_asked(site, layer, model, corpus)} were asked for; "
            f"{_listed(fitting)} fit; give model and corpus"
        )
    return StoredSite(*fitting[0])


def dense_filters(found: StoredSite) -> list[tuple[str, str, Any]]:
    """Return what rows of the ``files`` table of a site's shards meet."""
    return [("kind", "=", DENSE), *((c, "=", v) for c, v in vars(found).items())]


def open_stored(store: LakeStore, snapshot: Snapshot, found: StoredSite) -> DenseArray:
    """Open an array as it is in `snapshot`: shards that it has not read as zero."""
    named = set(store.read("files", snapshot, ["path"], dense_filters(found))["path"].to_pylist())
    key = (found.corpus, found.model, found.site, found.layer)
    folder = f"{ACTIVATIONS}/{array_name(*key)}"
    array = open_array(store.root, *key)
    n_contexts = _n_contexts(store, snapshot, found.corpus)
    is_same = n_contexts in (None, array.shape[0])
    if is_same and all(entry.path in named for entry in store.root.list(f"{folder}/c")):
        return array
    from scopelake.store.masked import masked

    plain = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
    with zarr.config.set(_SETTINGS | plain):
        seen = masked(store.root.zarr(folder, read_only=True), folder, named, n_contexts)
        return zarr.open_array(seen, mode="r", zarr_format=3)


def _n_contexts(store: LakeStore, snapshot: Snapshot, corpus: str) -> int | None:
    """Return the contexts of a corpus's arrays in a snapshot; None if it has no such corpus."""
    filters = [("corpus", "=", corpus)]
    rows = store.read("corpora", snapshot, NUMBER_COLUMNS, filters).to_pylist()
    return ContextNumbers.of(rows[0]).end if rows else None


def _asked(site: str, layer: int, model: str | None, corpus: str | None) -> str:
    named = [f" {what} {name}" for what, name in (("model", model), ("corpus", corpus)) if name]
    return f"{site}/{layer}" + "".join(named)


def _listed(keys: list[tuple[str, str, str, int]]) -> str:
    texts = [f"{site}/{layer} (model {model}, corpus {c})" for c, model, site, layer in keys]
    return ", ".join(texts) or "none"


def _check_site(corpus: str, site: str, layer: int) -> None:
    check_name("corpus", corpus)
    if site not in SITES or layer < 0:
        raise InvalidArgumentError(
            f"dense activations of {site}/{layer} were asked for; sites are {', '.join(SITES)} and "
            "layers count from 0; choose among these"
        )


def _shard_shape(array: DenseArray) -> tuple[int, int, int]:
    contexts, positions, width = array.shards or array.chunks
    return contexts, positions, width


@contextmanager
def _settings(root: Root) -> Iterator[None]:
    """Set what an array keeps from the moment that it is opened."""
    with zarr.config.set(_SETTINGS | root.zarr_settings()):
        yield


def _create(
    root: Root, name: str, shape: tuple[int, int, int], shards: tuple[int, int, int]
) -> DenseArray:
    parent, leaf = name.rsplit("/", 1)
    with _settings(root):
        store = root.zarr(ACTIVATIONS, read_only=False)
        group = zarr.open_group(store, mode="a", zarr_format=3)
        return group.require_group(parent).create_array(leaf, **array_format(shape, shards))


def array_format(shape: tuple[int, ...], shards: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments of zarr's `create_array` that make an array of this format."""
    return {
        "shape": shape,
        "dtype": "bfloat16",
        "chunks": (1, *shape[1:]),
        "shards": shards,
        "serializer": BytesCodec(endian="little"),
        "compressors": list(COMPRESSORS),
        "fill_value": 0,
        "dimension_names": ["context", "position", "width"],
    }


def _open(root: Root, name: str, mode: Literal["r", "r+"]) -> DenseArray | None:
    try:
        with _settings(root):
            store = root.zarr(ACTIVATIONS, read_only=mode == "r")
            return zarr.open_array(store, path=name, mode=mode, zarr_format=3)
    except (ArrayNotFoundError, FileNotFoundError):
        return None


def _existing(root: Root, name: str, mode: Literal["r", "r+"]) -> DenseArray:
    array = _open(root, name, mode)
    if array is None:
        raise LayerNotFoundError(
            f"dense array {name} was asked for; the lake at {root.url} has none of that name; "
            "ingest with dense to store it"
        )
    return array
