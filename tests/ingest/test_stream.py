"""Training reads: every token at most once, BOS never, in an order that the seed decides."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

import scopelake
from scopelake.errors import DamagedFileError, InvalidArgumentError, LayerNotFoundError, ModelError
from scopelake.names import KINDS
from scopelake.store.commit import Writer
from scopelake.store.dense import ensure_array, write_shard
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts

N_CONTEXTS, LENGTH, WIDTH, SHARD = 61, 20, 4, 8
CONTENT, BOS = KINDS.index("content"), KINDS.index("bos")


def make_kinds(rng):
    """BOS first, as of text; none; in the middle too; nothing but BOS."""
    found = []
    for context in range(N_CONTEXTS):
        kinds = np.full(rng.integers(1, LENGTH + 1), CONTENT)
        kinds[0] = BOS if context % 3 else CONTENT
        if context % 7 == 0:
            kinds[len(kinds) // 2 :: 3] = BOS
        if context % 20 == 5:
            kinds[:] = BOS
        found.append(kinds)
    return found


def build(path, n_shards=None):
    """A lake with one dense site; a token's values are its context and position."""
    rng = np.random.default_rng(0)
    store, kinds = LakeStore.create(path), make_kinds(rng)
    rows = [
        {"corpus": "c", "context": i, "kinds": k.tolist(), "n_tokens": len(k),
         "token_ids": [1] * len(k)}
        for i, k in enumerate(kinds)
    ]  # fmt: skip
    corpus = {"corpus": "c", "n_contexts": N_CONTEXTS, "shard_contexts": SHARD,
              "context_length": LENGTH}  # fmt: skip
    array = ("c", "m", "resid_post", 3)
    ensure_array(store.root, *array, N_CONTEXTS, LENGTH, WIDTH, SHARD)
    shards = range(-(-N_CONTEXTS // SHARD) if n_shards is None else n_shards)
    with Writer(store) as writer:
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["contexts"])
        receipts = write_contexts(store.root, table, corpus="c", run="r")
        for shard in shards:
            start, stop = shard * SHARD, min((shard + 1) * SHARD, N_CONTEXTS)
            values = np.full((stop - start, LENGTH, WIDTH), np.nan, ml_dtypes.bfloat16)
            values[:, :, 0] = np.arange(start, stop)[:, None]
            values[:, :, 1] = np.arange(LENGTH)
            values[:, :, 2:] = 7
            receipts.append(write_shard(store.root, *array, start, values, shard=shard, run="r"))
        corpora = pa.Table.from_pylist([corpus], schema=SCHEMAS["corpora"])
        writer.commit(receipts, transaction="t", reason="x", rows={"corpora": corpora})
    tokens = {(c, p) for c, k in enumerate(kinds) for p in np.flatnonzero(k != BOS).tolist()}
    return scopelake.open(path), tokens


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(tmp_path_factory.mktemp("stream") / "lake")


def names(batches):
    """The context and position of each token, in order."""
    rows = [batch.float() for batch in batches]
    assert all(bool((r[:, 2:] == 7).all()) for r in rows)
    return [(int(c), int(p)) for r in rows for c, p in r[:, :2].tolist()]


@pytest.mark.parametrize("batch", [1, 13, 64, 300])
@pytest.mark.parametrize("shuffle", [1, 50, 128, 10_000])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_share_the_tokens_and_bos_is_none(made, batch, shuffle, world_size):
    lake, tokens = made
    found = []
    if batch * world_size > len(tokens):
        with pytest.raises(
            InvalidArgumentError, match=f"give batch_tokens {len(tokens) // world_size}"
        ):
            lake.stream(3, batch_tokens=batch, world_size=world_size)
        return
    for rank in range(world_size):
        stream = lake.stream(3, batch_tokens=batch, shuffle_tokens=shuffle, rank=rank,
                             world_size=world_size)  # fmt: skip
        batches = list(stream)
        assert len(batches) == len(stream) == len(tokens) // (batch * world_size)
        assert all(b.shape == (batch, WIDTH) and b.dtype == torch.bfloat16 for b in batches)
        found += names(batches)
    assert len(set(found)) == len(found)
    assert set(found) <= tokens


def test_equal_seeds_give_equal_batches_and_other_epochs_other_ones(made):
    lake, _ = made
    options = {"batch_tokens": 16, "shuffle_tokens": 64}
    first, again = lake.stream(3, seed=4, **options), lake.stream(3, seed=4, **options)
    epochs = [names(first), names(first)]
    assert [names(again), names(again)] == epochs
    other = names(lake.stream(3, seed=5, **options))
    assert len({tuple(one) for one in (*epochs, other)}) == 3
    again.set_epoch(0)
    assert names(again) == epochs[0]


def test_tokens_of_a_block_are_mixed(made):
    lake, tokens = made
    found = names(lake.stream(3, batch_tokens=len(tokens), shuffle_tokens=len(tokens)))
    neighbours = sum(a[0] == b[0] for a, b in zip(found, found[1:], strict=False))
    assert neighbours < len(found) / 10
    assert found != sorted(found)


@pytest.mark.parametrize("shuffle", [16, 64, 10_000])
def test_a_stream_goes_on_from_any_batch(made, shuffle):
    lake, _ = made
    options = {"batch_tokens": 16, "shuffle_tokens": shuffle, "rank": 1, "world_size": 2}
    whole = names(lake.stream(3, **options)) + names(epoch_of(lake.stream(3, **options), 1))
    n = len(lake.stream(3, **options))
    for stop in (0, 1, 3, 4, 5, n - 1, n):
        stream = lake.stream(3, **options)
        begun = [batch for _, batch in zip(range(stop), iter(stream), strict=False)]
        state = pickle.loads(pickle.dumps(stream.state_dict()))
        other = lake.stream(3, **options)
        other.load_state_dict(state)
        rest = list(other)  # what is left of the epoch
        if stop < n:
            rest += list(other)
        assert names(begun) + names(rest) == whole


def epoch_of(stream, number):
    stream.set_epoch(number)
    return stream


def test_a_state_of_another_stream_is_refused(made):
    lake, _ = made
    state = lake.stream(3, batch_tokens=16).state_dict()
    for options in ({"batch_tokens": 32}, {"batch_tokens": 16, "seed": 1}):
        with pytest.raises(InvalidArgumentError, match="same arguments"):
            lake.stream(3, **options).load_state_dict(state)
    for change in ({"batch": 10**9}, {"epoch": -1}, {"batch": None}, {"site": "another"}):
        with pytest.raises(InvalidArgumentError, match="same arguments"):
            lake.stream(3, batch_tokens=16).load_state_dict(state | change)
    with pytest.raises(InvalidArgumentError, match="same arguments"):
        lake.stream(3, batch_tokens=16).load_state_dict({"seed": 0})
    with pytest.raises(InvalidArgumentError, match="epoch -1"):
        lake.stream(3, batch_tokens=16).set_epoch(-1)
    with pytest.raises(ModelError, match="device 'gpu'"):
        lake.stream(3, batch_tokens=16, device="gpu")


def test_an_iterator_left_behind_changes_nothing(made):
    lake, _ = made
    options = {"batch_tokens": 16, "shuffle_tokens": 32}
    stream = lake.stream(3, **options)
    old = iter(stream)
    next(old)
    stream.set_epoch(4)
    begun = iter(stream)
    first = next(begun)
    rest = list(old)  # still of epoch 0
    assert len(rest) == len(stream) - 1
    assert stream.state_dict()["epoch"] == 4
    assert stream.state_dict()["batch"] == 1
    again = epoch_of(lake.stream(3, **options), 4)
    assert names([first, *begun]) == names(again)


def test_workers_do_not_go_on_in_the_middle(made):
    stream = made[0].stream(3, batch_tokens=16)
    next(iter(stream))
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(InvalidArgumentError, match="set_epoch"):
        list(loader)


def test_workers_of_a_loader_share_an_epoch(made):
    lake, tokens = made
    stream = lake.stream(3, batch_tokens=16, shuffle_tokens=64)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = names(loader)
    assert len(set(found)) == len(found) == len(tokens) // 32 * 32
    assert set(found) <= tokens


def test_leaving_in_the_middle_leaves_no_thread(made):
    import threading

    lake, _ = made
    before = threading.active_count()
    batches = iter(lake.stream(3, batch_tokens=8, shuffle_tokens=16))
    next(batches)
    batches.close()
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"shuffle_tokens": 0}, "shuffle_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"world_size": 0}, "world_size=0"),
    ],
)
def test_what_cannot_be_streamed_is_refused(made, options, said):
    with pytest.raises(InvalidArgumentError, match=said):
        made[0].stream(3, **options)


def test_a_site_that_is_not_stored_whole_is_refused(made, tmp_path):
    with pytest.raises(LayerNotFoundError, match="resid_post/3"):
        made[0].stream(4)
    lake, _ = build(tmp_path / "lake", n_shards=5)
    with pytest.raises(LayerNotFoundError, match="3 of 8 shards are not stored, the first is 5"):
        lake.stream(3)


def test_damage_is_named(tmp_path):
    lake, _ = build(tmp_path / "lake")
    shard = lake.path / "activations/c/m/resid_post/layer_3/c/2/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedFileError, match="scopelake verify"):
        list(lake.stream(3, batch_tokens=8))
