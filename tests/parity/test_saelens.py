"""SAELens, from its own package, fires where scopelake fires: SAEs, transcoders plain and affine.

`make parity` installs it beside this package's environment and runs these tests.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from scopelake import tiny
from scopelake.ingest.capture import capture
from scopelake.ingest.coder_weights import load_decoder, load_encoders
from scopelake.ingest.coders import read_coder
from scopelake.ingest.model import ModelFiles, load_model
from scopelake.kernels.decode import decode
from scopelake.kernels.encode import encode

pytestmark = pytest.mark.parity
sae_lens = pytest.importorskip("sae_lens", reason="needs sae-lens: run `make parity`")

FOLDERS = [p.parent for p in sorted(tiny.coders_path().rglob("params.safetensors"))]


@pytest.fixture(scope="module")
def model():
    files = ModelFiles(tiny.model_path(), tiny.MODEL_NAME, "local")
    return load_model(files, device="cpu")


@pytest.fixture
def load_theirs(monkeypatch):
    """Return a function that loads a local folder with SAELens' loader for Gemma Scope 2."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local_file(repo_id, filename, subfolder=None, **_):
        return str(Path(repo_id, subfolder or "", filename))

    def local_shapes(repo_id, filename):
        with safe_open(Path(repo_id, filename), framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", local_file)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", local_shapes)

    def load(folder):
        repo, inner = str(folder.parents[1]), f"{folder.parent.name}/{folder.name}"
        cfg, state, _ = loaders.gemma_3_sae_huggingface_loader(repo, inner)
        cls, config_cls = sae_lens.registry.get_sae_class(cfg["architecture"])
        sae = cls(config_cls.from_dict(cfg))
        sae.load_state_dict(state)
        return sae.eval()

    return load


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_all_firings_and_reconstructions_agree(folder, model, load_theirs):
    coder = read_coder(folder)
    rng = np.random.default_rng(7)
    ids = [np.r_[2, rng.integers(110, 4096, n)].astype(np.int32) for n in (1, 62, 200)]
    x = capture(model, ids, coder.sites)[coder.sites[0]].float()
    theirs = load_theirs(folder)
    config = json.loads((folder / "config.json").read_text())
    assert theirs.cfg.architecture().startswith("jumprelu")
    with torch.no_grad():
        expected = theirs.encode(x)
        rebuilt = theirs.decode(expected)
        if config["affine_connection"]:
            rebuilt = rebuilt + x @ theirs.W_skip.T
    (encoder,) = load_encoders(coder, torch.device("cpu"))
    codes = encode(x, encoder)
    found = codes.to_dense(coder.width)
    distance = ((x @ encoder.w_enc + encoder.b_enc) - encoder.threshold).abs()
    near = distance <= 1e-4 * encoder.threshold.clamp(min=1e-3)
    disagree = (found > 0) != (expected > 0)
    # float32 sums in another order: only a pre-activation at its threshold may fall either way.
    assert bool(near[disagree].all())
    agree = ~disagree
    torch.testing.assert_close(found[agree], expected[agree], rtol=1e-4, atol=1e-4)
    assert int((found > 0).sum()) > 1000
    decoder = load_decoder(coder, torch.device("cpu"))
    y = decode(codes, decoder, x[:, None] if coder.affine else None)[:, 0]
    whole = ~disagree.any(dim=1)
    torch.testing.assert_close(y[whole], rebuilt[whole], rtol=1e-3, atol=1e-3)
