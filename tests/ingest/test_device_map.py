"""A model that lies in several places gives the same firings, evaluations and logits."""

import numpy as np
import pytest
import torch

from scopelake import tiny
from scopelake.errors import InvalidArgumentError, MissingDependencyError, ModelError
from scopelake.ingest import model as model_module
from scopelake.ingest.capture import capture
from scopelake.ingest.coders import read_coder
from scopelake.ingest.decoder_rows import decoder_columns, readout_of
from scopelake.ingest.evaluate import EvaluationContext, evaluate, model_loss
from scopelake.ingest.model import ModelFiles, load_model
from scopelake.names import SITES, SiteLayer

FILES = ModelFiles(tiny.model_path(), tiny.MODEL_NAME, "local")
IDS = [np.arange(110, 140, dtype=np.int32), np.arange(200, 210, dtype=np.int32)]
WHOLE = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu",
         "lm_head": "cpu"}  # fmt: skip
PLACES = {
    "layers on disk": WHOLE | {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(6)},
    "all but the embeddings on disk": WHOLE
    | {"model.norm": "disk"}
    | {f"model.layers.{n}": "disk" for n in range(6)},
    "auto": "auto",
}


@pytest.mark.parametrize("place", PLACES)
def test_every_site_and_figure_is_the_same(tiny_model, place):
    spread = load_model(FILES, device_map=PLACES[place], dtype="float32")
    on_disk = [p for p in spread.module.parameters() if p.is_meta]
    assert bool(on_disk) == ("disk" in place)
    sites = [SiteLayer(site, layer) for site in SITES for layer in range(6)]
    whole, found = capture(tiny_model, IDS, sites), capture(spread, IDS, sites)
    assert all(torch.equal(whole[site], found[site]) for site in sites)
    coder = read_coder(tiny.coders_path() / "transcoder_all" / "layer_3_width_512_l0_small_affine")
    assert decoder_columns(coder, spread.device, readout_of(spread)) == decoder_columns(
        coder, tiny_model.device, readout_of(tiny_model)
    )
    contexts = [EvaluationContext(ids, np.arange(len(ids)) > 0) for ids in IDS]
    losses = [model_loss(m, contexts) for m in (tiny_model, spread)]
    assert losses[0] == losses[1]
    assert evaluate(coder, spread, contexts, losses[0]) == evaluate(
        coder, tiny_model, contexts, losses[0]
    )


def test_a_device_besides_a_map_is_refused():
    with pytest.raises(InvalidArgumentError, match="give one of them"):
        load_model(FILES, device="cpu", device_map="auto")


def test_a_map_without_accelerate_says_what_to_install(monkeypatch):
    monkeypatch.setattr(model_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'scopelake\[device-map\]'"):
        load_model(FILES, device_map="auto")


def test_a_map_of_no_known_kind_is_refused():
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(FILES, device_map="nowhere")
    assert "\n" not in str(caught.value)
