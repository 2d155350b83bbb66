"""Builders for corpora, models and coders in their real formats, small and random."""

import json

import pytest
import torch
from safetensors.torch import save_file

from scopelake import tiny


@pytest.fixture(scope="session")
def tokenizer():
    from scopelake.ingest.tokens import Tokenizer

    return Tokenizer.load(tiny.model_path(), tiny.MODEL_NAME)


@pytest.fixture(scope="session")
def tiny_model():
    from scopelake.ingest.model import ModelFiles, load_model

    files = ModelFiles(tiny.model_path(), tiny.MODEL_NAME, "local")
    return load_model(files, device="cpu", dtype="float32")


@pytest.fixture
def write_coder():
    """Return a function that writes a coder folder in Gemma Scope 2's layout."""

    def write(root, family="resid_post_all", folder="layer_1_width_64_l0_small", *, d_in=128,
              width=64, d_out=None, config=None, drop=(), **tensors):  # fmt: skip
        d_out = d_in if d_out is None else d_out
        generator = torch.Generator().manual_seed(0)
        values = {
            "w_enc": torch.randn(d_in, width, generator=generator),
            "b_enc": torch.zeros(width),
            "threshold": torch.rand(width, generator=generator) + 1,
            "w_dec": torch.nn.functional.normalize(
                torch.randn(width, d_out, generator=generator), dim=1
            ),
            "b_dec": torch.zeros(d_out),
        } | tensors
        target = root / "gemma-scope-2-test" / family / folder
        target.mkdir(parents=True)
        save_file({k: v for k, v in values.items() if k not in drop}, target / "params.safetensors")
        if config is None:
            config = {"model_name": tiny.MODEL_NAME, "architecture": "jump_relu", "l0": 10}
        if config is not False:
            (target / "config.json").write_text(json.dumps(config))
        return target

    return write
