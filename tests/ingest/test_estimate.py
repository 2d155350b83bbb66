"""The arithmetic of a plan, against counts made in other ways."""

import json
import re
from itertools import product

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from scopelake import tiny
from scopelake.errors import CoderFileError, CoderMismatchError
from scopelake.ingest.capture import capture
from scopelake.ingest.devices import H100, Device
from scopelake.ingest.estimate import Work, estimate
from scopelake.ingest.flops import attended, encode_flops_a_token, forward_flops
from scopelake.ingest.grid import grid_l0, published_coders, published_model
from scopelake.ingest.memory_need import Cut
from scopelake.ingest.model import find_model, load_model
from scopelake.ingest.rows_law import Profile
from scopelake.ingest.shapes import (
    CoderShape,
    Shards,
    corpus_of_tokens,
    model_shape,
    shards_of_tokens,
)
from scopelake.ingest.work_left import Asked, work_of_tokens
from scopelake.names import SiteLayer
from scopelake.store.firings import Firings
from scopelake.store.running import Running

GB = 10**9


@pytest.fixture(scope="module")
def tiny_files():
    return find_model(tiny.model_path())


@pytest.fixture(scope="module")
def shape(tiny_files):
    return model_shape(tiny_files)


def coder(**changes):
    given = {
        "name": "r/resid_post/layer_1_width_16k_l0_small",
        "sites": (SiteLayer("resid_post", 1),),
        "d_in": 128,
        "features_per_layer": 16_384,
        "l0": 20.0,
        "l0_basis": "stated",
        "has_readout": True,
    }
    return CoderShape(**given | changes)


def test_a_models_weights_are_counted_as_its_file_has_them(shape):
    with safe_open(tiny.model_path() / "model.safetensors", framework="np") as file:
        counted = sum(np.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert shape.n_params == counted


@pytest.mark.parametrize(
    ("size", "billions"), [("270m", 0.27), ("1b", 1.0), ("4b", 3.9), ("12b", 11.8), ("27b", 27.0)]
)
def test_the_published_sizes_have_about_the_weights_that_they_are_called_for(size, billions):
    model = published_model(f"google/gemma-3-{size}-it")
    assert model.n_params == pytest.approx(billions * 1e9, rel=0.02)
    assert published_model("google/gemma-2-2b") is None


def test_products_are_those_that_the_model_runs(tiny_files, shape):
    model = load_model(tiny_files, device="cpu")
    context, layers = np.arange(2, 66, dtype=np.int32), 4
    with FlopCounterMode(display=False) as counter:
        capture(model, [context], [SiteLayer("attn_out", layers - 1)])
    ran = sum(
        n
        for name, n in counter.get_flop_counts()["Global"].items()
        if "mm" in str(name) and "bmm" not in str(name)
    )
    corpus = corpus_of_tokens(64, 64, 1)
    pairs = 64 * 65 // 2
    assert forward_flops(shape, corpus, layers) == ran + 4 * 4 * 48 * pairs * layers


@pytest.mark.parametrize("window", [None, 1, 5, 7, 100])
def test_tokens_attend_to_themselves_and_those_before_them(window):
    lengths, counts = np.array([1, 6, 7, 30]), np.array([2, 1, 3, 1])
    pairs = sum(
        int(count)
        for length, count in zip(lengths, counts, strict=True)
        for query, key in product(range(length), repeat=2)
        if 0 <= query - key < (window or length)
    )
    assert attended(lengths, counts, window) == pairs


def test_a_coder_of_several_layers_encodes_at_each_of_them():
    sites = tuple(SiteLayer("mlp_in", layer) for layer in range(3))
    assert encode_flops_a_token(coder(sites=sites, features_per_layer=10)) == 3 * 2 * 128 * 10


def test_the_grids_l0_is_the_published_one():
    # From config.json of the published coders, as other projects quote it.
    assert grid_l0("medium", 9, 34, all_layers=False) == 53
    assert grid_l0("small", 0, 34, all_layers=True) == 10
    assert grid_l0("big", 22, 26, all_layers=True) == 120
    assert grid_l0("big", 22, 26, all_layers=False) == 150


def test_published_coders_are_known_by_name():
    model = "google/gemma-3-1b-it"
    found = published_coders("google/gemma-scope-2-1b-it/*_all/layer_13_width_16k_l0_small", model)
    assert {c.sites[0].site: c.d_in for c in found} == {
        "resid_post": 1152, "attn_out": 1024, "mlp_out": 1152, "mlp_in": 1152,
    }  # fmt: skip
    assert published_coders("some/folder", model) is None
    with pytest.raises(CoderFileError, match="no single-layer coder of that name"):
        published_coders("google/gemma-scope-2-1b-it/resid_post/layer_99_width_16k_l0_small", model)
    with pytest.raises(CoderMismatchError, match="trained on gemma-3-1b-pt"):
        published_coders("google/gemma-scope-2-1b-pt/resid_post/*", model)


def test_a_coder_of_another_width_or_layer_is_refused(shape):
    for wrong in (coder(d_in=64), coder(sites=(SiteLayer("resid_post", 6),))):
        with pytest.raises(CoderMismatchError, match="use a coder of this model"):
            Asked(shape, (wrong,), (), 10, 16384, 4)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_rows_of_peaks_and_samples_grow_as_the_store_lets_them(share):
    """Firings at random, written shard by shard with look-back, against the law."""
    rng, per_shard, n_shards, length, width = np.random.default_rng(0), 400, 24, 8, 4
    running, peaks, samples = Running(width), 0, 0
    for shard in range(n_shards):
        fires = rng.random((width, per_shard)) < share
        feature, context = np.nonzero(fires)
        n = len(feature)
        firings = Firings(
            context + shard * per_shard, np.ones(n, np.int32), feature.astype(np.int32),
            (1 + rng.random(n)).astype(np.float32), np.zeros(n, np.int8),
        )  # fmt: skip
        strongest, sampled = running.select(firings)
        running.accept()
        peaks, samples = peaks + strongest.num_rows, samples + sampled.num_rows
    profile = Profile(np.full(width, share), 1.0, np.full(width, share / length), 1.0)
    shards = Shards((per_shard,) * n_shards, (per_shard * length,) * n_shards)
    assert profile.peaks(shards) == pytest.approx(peaks, rel=0.1)
    assert profile.samples(shards) == pytest.approx(samples, rel=0.25)


def test_contexts_that_are_there_leave_less_to_come():
    profile = Profile(np.ones(3), 1.0, np.full(3, 0.1), 1.0)
    fresh = Shards((256,) * 4, (4096,) * 4)
    later = Shards((256,) * 4, (4096,) * 4, contexts_before=256 * 100)
    assert profile.peaks(later) < profile.peaks(fresh) / 10
    assert profile.samples(later) < profile.samples(fresh) / 10


def work(shape, *coders, tokens=1 << 20, dense=()):
    asked = Asked(shape, coders, tuple(dense), 10, 16384, 4)
    return work_of_tokens(tokens, 1024, 256, asked)


CPU = Device("cpu", "cpu", 1e11, 1e11, "measured", None, 64 * GB, 2)


def test_the_forward_stops_after_the_highest_layer_that_is_read(shape):
    low = estimate(work(shape, coder()), CPU)
    high = estimate(work(shape, coder(), dense=[SiteLayer("resid_post", 3)]), CPU)
    assert (low.layers_run, high.layers_run) == (2, 4)
    assert high.forward_flops.value > low.forward_flops.value
    assert high.encode_flops == low.encode_flops
    assert high.table("dense").rows == 1024


def test_firings_bytes_and_objects_follow_from_tokens_and_l0(shape):
    plan = estimate(work(shape, coder(), tokens=1 << 20), CPU)
    assert plan.firings.value == 20 * 2**20
    assert plan.firings.basis == "stated"
    assert plan.n_shards == 4
    # The first shard is cut in two: before anything has fired half of all features may.
    assert plan.table("codes").objects == plan.table("postings").objects == 4 + 1
    # docs/performance.md: 7.1 bytes a firing in both orders, 16,384 features.
    both = plan.table("codes").n_bytes + plan.table("postings").n_bytes
    assert both / plan.firings.value == pytest.approx(7.3, rel=0.05)
    fewer = estimate(work(shape, coder(l0=20.0)), CPU, tokens_per_second=2**20 / 10)
    assert fewer.seconds.value == pytest.approx(10)
    assert fewer.seconds.basis == fewer.tokens_per_second.basis == "stated"


def test_what_does_not_fit_is_named_with_what_to_do():
    model = published_model("google/gemma-3-27b-it")
    coders = published_coders(
        "google/gemma-scope-2-27b-it/resid_post_all/*_width_16k_l0_small", model.name
    )[:40]
    asked = Asked(model, tuple(coders), (), 10, 16384, 2)
    (line,) = estimate(work_of_tokens(10**9, 1024, 256, asked), H100).misfits
    assert "the device's memory" in line
    tokens = int(re.search(r"use --batch-tokens (\d+)", line)[1])
    smaller = Asked(model, tuple(coders), (), 10, tokens, 2)
    assert estimate(work_of_tokens(10**9, 1024, 256, smaller), H100).misfits == ()
    coders *= 7
    asked = Asked(model, tuple(coders), (), 10, 16384, 2)
    (line,) = estimate(work_of_tokens(10**9, 1024, 256, asked), H100).misfits
    passes, each, tokens = map(
        int, re.search(r"in (\d+) ingests of (\d+) or .* --batch-tokens (\d+)", line).groups()
    )
    assert passes * each >= len(coders) - passes
    part = Asked(model, tuple(coders[:each]), (), 10, tokens, 2)
    assert estimate(work_of_tokens(10**9, 1024, 256, part), H100).misfits == ()
    small = Device("cuda", "gpu", 1e14, 1e13, "assumed", 8 * GB, 8 * GB, 2)
    few = estimate(work_of_tokens(10**9, 1024, 256, asked), small)
    assert any("--device-map auto" in line for line in few.misfits)
    assert any("host's memory: memory of 4,800,000,000 bytes" in line for line in few.misfits)
    asked = Asked(model, (), (SiteLayer("mlp_out", 0),), 10, 16384, 2)
    assert estimate(work_of_tokens(10**6, 1024, 256, asked), H100).misfits == ()


def test_a_full_disk_is_foreseen(shape):
    given = work(shape, coder())
    full = Work(**vars(given) | {"disk_free": 10_000_000})
    assert "the lake's disk" in estimate(full, CPU).misfits[0]


def test_a_plan_is_plain_values_and_text(shape):
    plan = estimate(work(shape, coder()), CPU)
    assert json.loads(json.dumps(plan.to_dict()))["n_objects"] == plan.n_objects
    for word in ("tokens", "forward", "encode", "postings", "memory, host", "together", "exact"):
        assert word in plan.to_text()


def test_shards_of_so_many_tokens_are_full_but_the_last():
    corpus = corpus_of_tokens(1024 * 300 + 5, 1024, 256)
    shards = shards_of_tokens(corpus)
    assert shards.contexts == (256, 45)
    assert shards.n_tokens == corpus.n_tokens == 1024 * 300 + 5
    assert corpus.n_contexts == 301


def test_the_device_is_measured():
    from scopelake.ingest.devices import this_device

    device = this_device(torch.device("cpu"), torch.float32)
    assert device.basis == "measured"
    assert 1e8 < device.gemm < 1e15
    assert device.host_memory > 10**8


def test_a_map_puts_the_rest_of_the_model_into_the_hosts_memory():
    model = published_model("google/gemma-3-27b-it")
    small = Device("cuda", "gpu", 1e14, 1e13, "assumed", 24 * GB, 128 * GB, 2)
    sites = (SiteLayer("resid_post", 0),)
    given = work_of_tokens(10**9, 1024, 256, Asked(model, (), sites, 10, 1024, 2))
    whole, spread = (
        estimate(Work(**vars(given) | {"is_spread": is_spread}), small)
        for is_spread in (False, True)
    )
    (line,) = whole.misfits
    assert "--device-map auto" in line
    assert spread.misfits == ()
    weights = 2 * model.n_params
    assert sum(p.n_bytes for p in spread.device_memory) == 24 * GB
    moved = sum(p.n_bytes for p in spread.host_memory) - sum(p.n_bytes for p in whole.host_memory)
    on_device = next(p.n_bytes for p in spread.device_memory if "weights" in p.what)
    assert moved == weights - on_device > 0


def test_less_memory_makes_more_and_smaller_files(shape):
    ample = estimate(work(shape, coder()), CPU)
    given = work(shape, coder())
    tight = estimate(Work(**vars(given) | {"memory": "1GB"}), CPU)
    assert ample.table("codes").objects == 5  # half of 16,384 features, the first time
    assert tight.table("codes").objects > 20
    assert tight.misfits == ()
    assert sum(p.n_bytes for p in tight.host_memory) <= tight.memory == 10**9
    assert sum(p.n_bytes for p in ample.host_memory) <= ample.memory == int(0.6 * 64 * GB)


@pytest.mark.parametrize("first", [1, 10, 25, 99, 100, 10**6])
@pytest.mark.parametrize("others", [1, 30, 95, 10**6])
def test_shards_are_cut_where_contexts_end(first, others):
    """Shards of 10, 10 and 3 contexts of 10 tokens, against cutting them one by one."""
    most, pieces = first, 0
    for left in (10, 10, 3):
        while left > 0:
            left, pieces, most = left - max(1, most // 10), pieces + 1, others
    found = Cut(first, others, 10).pieces(Shards((10, 10, 3), (100, 100, 30)))
    assert found == pieces
    assert Cut(first, others, 10).pieces(Shards((), ())) == 0
