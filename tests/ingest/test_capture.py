"""Captured tensors equal plain transformers' own, whatever the batch and padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scopelake.errors import CoderMismatchError
from scopelake.ingest.capture import capture, hook_site, site_width
from scopelake.ingest.encode_shard import batches
from scopelake.names import SITES, SiteLayer

LENGTHS = (1, 7, 200, 63)


def contexts():
    rng = np.random.default_rng(0)
    return [np.concatenate([[2], rng.integers(110, 4096, n - 1)]).astype(np.int32) for n in LENGTHS]


def plain_activations(model, ids, layer):
    """One context alone through the whole model, with hooks written out here."""
    found = {}
    block = model.module.model.layers[layer]
    norms = {
        "mlp_out": block.post_feedforward_layernorm,
        "mlp_in": block.pre_feedforward_layernorm,
    }
    handles = [
        block.self_attn.o_proj.register_forward_hook(
            lambda m, args, out: found.__setitem__("attn_out", args[0])
        ),
        block.register_forward_hook(
            lambda m, args, out: found.__setitem__(
                "resid_post", out[0] if isinstance(out, tuple) else out
            )
        ),
    ]
    for name, module in norms.items():
        handles.append(
            module.register_forward_hook(
                lambda m, args, out, name=name: found.__setitem__(name, out)
            )
        )
    with torch.no_grad():
        model.module(input_ids=torch.tensor(ids[None].astype(np.int64)))
    for handle in handles:
        handle.remove()
    return {name: value[0] for name, value in found.items()}


@pytest.mark.parametrize("layer", [0, 5])  # sliding and full attention
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_capture_equals_each_context_alone(tiny_model, layer, padding_side):
    sites = [SiteLayer(site, layer) for site in SITES]
    found = capture(tiny_model, contexts(), sites, padding_side=padding_side)
    for site in sites:
        alone = [plain_activations(tiny_model, ids, layer)[site.site] for ids in contexts()]
        expected = torch.cat(alone)
        assert found[site].shape == (sum(LENGTHS), site_width(tiny_model, site))
        # Same maths in other blockings: float32 sums over at most 512 terms, six layers deep.
        error = (found[site] - expected).norm() / expected.norm()
        assert error < 1e-5


def test_hooks_are_removed_even_after_an_error(tiny_model):
    with pytest.raises(IndexError):
        capture(tiny_model, [np.array([5000], dtype=np.int32)], [SiteLayer("resid_post", 0)])
    layer = tiny_model.module.model.layers[0]
    assert not layer._forward_hooks
    assert not layer.self_attn.o_proj._forward_pre_hooks


def test_the_forward_stops_after_the_highest_layer(tiny_model):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda m, args, n=n: ran.append(n))
        for n, block in enumerate(tiny_model.module.model.layers)
    ]
    capture(tiny_model, contexts(), [SiteLayer("mlp_in", 3), SiteLayer("resid_post", 1)])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("is_tuple", [False, True])
def test_a_layer_may_return_a_tuple(is_tuple):
    """As decoder layers did up to transformers 4, and as no version does that can be installed."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            return (x + 1, "cache") if is_tuple else x + 1

    layer = Layer()
    module = SimpleNamespace(model=SimpleNamespace(layers=[layer]))
    model = SimpleNamespace(module=module)
    x, seen = torch.zeros(2, 3, 4), []
    with_hook = hook_site(model, SiteLayer("resid_post", 0), seen.append)
    assert torch.equal(layer(x)[0], (x + 1) if is_tuple else (x + 1)[0])
    assert torch.equal(seen[0], x + 1)
    with_hook.remove()
    hook_site(model, SiteLayer("resid_post", 0), lambda tensor: tensor * 5)
    found = layer(x)
    assert torch.equal(found[0] if is_tuple else found, (x + 1) * 5)
    assert not is_tuple or found[1] == "cache"


def test_a_layer_that_is_not_there_is_refused(tiny_model):
    with pytest.raises(CoderMismatchError, match="layers 0 to 5"):
        site_width(tiny_model, SiteLayer("mlp_in", 6))


@pytest.mark.parametrize("batch_tokens", [1, 10, 100, 10**6])
def test_batches_hold_every_context_once_within_the_budget(batch_tokens):
    lengths = [5, 1, 100, 99, 3, 3, 3, 64]
    groups = list(batches(lengths, batch_tokens))
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= batch_tokens
    assert list(batches([], batch_tokens)) == []
