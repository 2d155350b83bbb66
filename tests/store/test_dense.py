"""Dense activations: written here, read here, by zarr-python alone and by tensorstore."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from scopelake.errors import InvalidArgumentError, LayerNotFoundError
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, open_array, open_dense, write_shard

MODEL = "google/some-model"
ARRAY = ("c", MODEL, "resid_post", 2)
N, LENGTH, WIDTH, PER_SHARD = 10, 8, 6, 4


def values() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(N, LENGTH, WIDTH)).astype(ml_dtypes.bfloat16)
    made[4:8] = 0  # a shard of nothing but the fill value
    return made


def fill(store):
    data = values()
    ensure_array(store.root, *ARRAY, N, LENGTH, WIDTH, PER_SHARD)
    receipts = [
        write_shard(store.root, *ARRAY, start, data[start : start + PER_SHARD], shard=i, run="r")
        for i, start in enumerate(range(0, N, PER_SHARD))
    ]
    with Writer(store) as writer:
        return data, writer.commit(receipts, transaction="r:d", reason="dense")


def bits(array) -> np.ndarray:
    return np.asarray(array).view(np.int16)


def test_values_come_back_bit_by_bit(store):
    data, snapshot = fill(store)
    array = open_dense(store, snapshot, 2, "resid_post")
    assert array.dtype == ml_dtypes.bfloat16
    assert (bits(array[:]) == bits(data)).all()
    assert (bits(array[9]) == bits(data[9])).all()
    assert (bits(pickle.loads(pickle.dumps(array))[3]) == bits(data[3])).all()
    files = store.read("files", snapshot)
    assert sorted(files["shard"].to_pylist()) == [0, 1, 2]
    assert sum(files["n_rows"].to_pylist()) == N


def test_other_readers_see_the_same_values(store):
    data, _ = fill(store)
    path = store.root.path / "activations" / "c" / "google~some-model" / "resid_post" / "layer_2"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    found = tensorstore.open(spec, read=True).result()
    assert str(found.dtype.name) == "bfloat16"
    assert (bits(found.read().result()) == bits(data)).all()
    plain = zarr.open_group(store.root.path / "activations", mode="r")
    assert (bits(plain["c/google~some-model/resid_post/layer_2"][:]) == bits(data)).all()


def test_an_array_grows_and_a_shard_in_it_may_be_short(store):
    data, snapshot = fill(store)
    before = {p: p.read_bytes() for p in (store.root.path / "activations").rglob("c/*/0/0")}
    ensure_array(store.root, *ARRAY, N + 9, LENGTH, WIDTH, PER_SHARD)
    assert ensure_array(store.root, *ARRAY, N, LENGTH, WIDTH, PER_SHARD).shape[0] == N + 9
    assert {p: p.read_bytes() for p in before} == before
    start = 4 * PER_SHARD
    receipt = write_shard(store.root, *ARRAY, start, data[:1], shard=4, run="r")
    assert receipt.n_rows == 1
    array = open_array(store.root, *ARRAY)
    assert (bits(array[:N]) == bits(data)).all()
    assert (bits(array[start]) == bits(data[0])).all()
    assert not np.asarray(array[start + 1 :]).any()


def test_what_does_not_fit_is_refused(store):
    data, snapshot = fill(store)
    with pytest.raises(InvalidArgumentError, match="same sizes"):
        ensure_array(store.root, *ARRAY, N, LENGTH, WIDTH + 1, PER_SHARD)
    with pytest.raises(InvalidArgumentError, match="1 or more"):
        ensure_array(store.root, "c", MODEL, "resid_post", 3, 0, LENGTH, WIDTH, PER_SHARD)
    with pytest.raises(InvalidArgumentError, match="sites are"):
        ensure_array(store.root, "c", MODEL, "nowhere", 3, N, LENGTH, WIDTH, PER_SHARD)
    for start, shard, given in [
        (0, 0, data[:5]), (0, 0, data[:0]), (1, 0, data[:4]), (0, 0, data[:4].astype("f4"))
    ]:  # fmt: skip
        with pytest.raises(InvalidArgumentError, match="whole shard"):
            write_shard(store.root, *ARRAY, start, given, shard=shard, run="r")
    with pytest.raises(LayerNotFoundError, match="none of that name"):
        open_array(store.root, "c", MODEL, "resid_post", 7)
    with pytest.raises(LayerNotFoundError, match="resid_post/2 "):
        open_dense(store, snapshot, 7, "resid_post")
    with pytest.raises(LayerNotFoundError, match="has none"):
        open_dense(store, store.snapshot(1), 2, "resid_post")
