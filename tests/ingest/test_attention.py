"""Attention without masks of queries by keys: as plain transformers, in little memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from scopelake import tiny
from scopelake.ingest.capture import capture
from scopelake.names import SiteLayer

SITES = [SiteLayer(site, layer) for site in ("resid_post", "attn_out") for layer in (0, 5)]


@pytest.fixture(scope="module")
def plain():
    """The model as transformers loads it, with its most literal attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(tiny.model_path()), dtype=torch.float32, attn_implementation="eager"
    )


def hidden(plain, ids, layer):
    with torch.no_grad():
        found = plain.model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
    # The last of them has gone through the final norm, so layer 5 is read where it is added.
    return found.hidden_states[layer + 1][0]


@pytest.mark.parametrize("n_tokens", [1, 127, 128, 129, 511, 512, 513, 1400])
def test_a_context_of_any_length_is_as_in_plain_transformers(tiny_model, plain, n_tokens):
    ids = np.random.default_rng(n_tokens).integers(110, 4096, n_tokens, dtype=np.int32)
    found = capture(tiny_model, [ids], SITES)
    for layer in (0, 3):
        (mine,) = capture(tiny_model, [ids], [SiteLayer("resid_post", layer)]).values()
        torch.testing.assert_close(mine, hidden(plain, ids, layer), rtol=2e-4, atol=2e-3)
    assert all(tensor.shape[0] == n_tokens for tensor in found.values())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tiny_model, side):
    generator = np.random.default_rng(0)
    contexts = [generator.integers(110, 4096, n, dtype=np.int32) for n in (700, 3, 300, 129)]
    together = capture(tiny_model, contexts, SITES, padding_side=side)
    for site in SITES:
        alone = torch.cat([capture(tiny_model, [ids], [site])[site] for ids in contexts])
        torch.testing.assert_close(together[site], alone, rtol=2e-4, atol=2e-3)


LONG = """
import sys
import numpy as np
from pathlib import Path
from scopelake import tiny
from scopelake.ingest.capture import capture
from scopelake.ingest.model import ModelFiles, load_model
from scopelake.names import SiteLayer

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024

model = load_model(ModelFiles(tiny.model_path(), "m", "local"), device="cpu", dtype="float32")
ids = np.random.default_rng(0).integers(110, 4096, int(sys.argv[1]), dtype=np.int32)
capture(model, [ids[:256]], [SiteLayer("resid_post", 4)])
before = peak()
capture(model, [ids], [SiteLayer("resid_post", 4)])
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_square_of_a_context():
    n = 16384
    done = subprocess.run(
        [sys.executable, "-P", "-c", LONG, str(n)], check=True, capture_output=True, text=True
    )
    # A mask of every query and key would be 256 MiB as bytes, and 1 GiB as numbers.
    assert float(done.stdout) < 240
