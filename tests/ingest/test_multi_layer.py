"""Crosscoders and CLTs: one index space over layers, equal to the written-out maths."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scopelake
from scopelake import tiny
from scopelake.errors import CoderFileError, CoderMismatchError, CoderWarning
from scopelake.ingest.coder_weights import load_decoder, load_encoders
from scopelake.ingest.coders import check_fits, read_coder
from scopelake.ingest.decoder_rows import decoder_columns, readout_of
from scopelake.names import SiteLayer

WIDTH = 16
RELATIVE_BAND = 1e-4
STORED_ERROR = 2.0**-11


@pytest.fixture
def coders(tmp_path, write_multi_layer):
    crosscoder = "layer_1_3_4_width_48_l0_medium"
    return {
        "crosscoder": write_multi_layer(tmp_path, "crosscoder", crosscoder, n_layers=3),
        "clt": write_multi_layer(
            tmp_path, "clt", "width_96_l0_big_affine", n_layers=6, scale=0.2, affine=True
        ),
    }


def test_they_say_what_they_are(coders):
    crosscoder, clt = (read_coder(coders[t]) for t in ("crosscoder", "clt"))
    assert crosscoder.sites == tuple(SiteLayer("resid_post", n) for n in (1, 3, 4))
    assert crosscoder.targets == crosscoder.sites
    assert crosscoder.hook_in == crosscoder.hook_out == "model.layers.{1,3,4}.output"
    assert (crosscoder.width, crosscoder.features_per_layer) == (48, WIDTH)
    assert clt.sites == tuple(SiteLayer("mlp_in", n) for n in range(6))
    assert clt.targets == tuple(SiteLayer("mlp_out", n) for n in range(6))
    assert clt.hook_in == "model.layers.{all}.pre_feedforward_layernorm.output"
    assert (clt.type, clt.width, clt.affine) == ("clt", 96, True)
    assert len(crosscoder.params) == 3
    decoder = load_decoder(clt, torch.device("cpu"))
    assert decoder.skip is not None
    assert [w.shape for w in decoder.w_dec] == [(WIDTH, 6, 128)] * 6
    assert decoder.b_dec.shape == (6, 128)


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_a_decoder_is_not_loaded_to_encode(coders, kind):
    for file in coders[kind].glob("params_layer_*.safetensors"):
        tensors = load_file(file)
        save_file(tensors | {"w_dec": torch.full_like(tensors["w_dec"], float("nan"))}, file)
    coder = read_coder(coders[kind])
    encoders = load_encoders(coder, torch.device("cpu"))
    assert [e.width for e in encoders] == [WIDTH] * len(coder.sites)
    with pytest.raises(CoderFileError, match="w_dec that is not finite"):
        load_decoder(coder, torch.device("cpu"))


@pytest.fixture
def lake(tmp_path, coders):
    (tmp_path / "a.txt").write_text("import os\n\nclass Lake:\n    depth = 3  # metres\n" * 8)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=50,
                    shard_contexts=2)  # fmt: skip
    lake.ingest("text", model=tiny.MODEL_NAME, saes=list(coders.values()), device="cpu")
    return lake


def hooked(ids):
    """Every layer's residual output and MLP input, by plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny.model_path()), dtype=torch.float32)
    found = {}
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(
            lambda m, args, out, k=("crosscoder", layer): found.__setitem__(
                k, (out[0] if isinstance(out, tuple) else out)[0]
            )
        )
        block.pre_feedforward_layernorm.register_forward_hook(
            lambda m, args, out, k=("clt", layer): found.__setitem__(k, out[0])
        )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    return found


def test_firings_equal_the_written_out_maths_and_carry_their_layer(lake, coders):
    layers = {"crosscoder": (1, 3, 4), "clt": range(6)}
    n_checked = 0
    contexts = lake.sql("SELECT context, token_ids FROM contexts ORDER BY context").to_pylist()
    acts = [hooked(row["token_ids"]) for row in contexts]
    for kind, folder in coders.items():
        rows = lake.sql(
            "SELECT c.*, layers[feature // features_per_layer + 1] AS layer FROM codes c "
            "JOIN saes USING (sae) WHERE type = ?", [kind],
        ).to_pylist()  # fmt: skip
        stored = {(r["context"], r["position"], r["feature"]): r for r in rows}
        assert len(stored) == len(rows)
        for index, layer in enumerate(layers[kind]):
            t = load_file(folder / f"params_layer_{index}.safetensors")
            for context, found in enumerate(acts):
                pre = found[kind, layer] @ t["w_enc"] + t["b_enc"]
                near = (pre - t["threshold"]).abs() <= RELATIVE_BAND * t["threshold"]
                for position, feature in np.argwhere((pre > t["threshold"]).numpy()).tolist():
                    key = (context, position, index * WIDTH + feature)
                    row = stored.pop(key, None)
                    if row is None:
                        assert near[position, feature]
                        continue
                    assert row["layer"] == layer
                    true = float(pre[position, feature])
                    assert abs(row["activation"] - true) <= (STORED_ERROR + 1e-4) * abs(true)
                    n_checked += 1
        assert not stored
    assert n_checked > 500


def test_queries_and_statistics_work_for_them(lake):
    for kind, layer in (("crosscoder", 3), ("clt", 5)):
        (sae,) = lake.sql("SELECT sae FROM saes WHERE type = ?", [kind])["sae"].to_pylist()
        rows = lake.sql(
            "SELECT feature, firings, max FROM features WHERE sae = ? ORDER BY feature", [sae]
        ).to_pylist()
        assert [r["feature"] for r in rows] == list(range(48 if kind == "crosscoder" else 96))
        busiest = max(rows, key=lambda r: r["firings"])
        top = lake.top_contexts(busiest["feature"], sae=sae, k=3).table.to_pylist()
        assert top[0]["activation"] == busiest["max"]
        here = lake.features_at(0, 3, sae=sae).table.to_pylist()
        assert {r["layer"] for r in here} <= set(range(6))
        assert lake.top_contexts(0, layer=layer, sae=sae).sae == sae


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_promoted_tokens_are_those_of_what_a_feature_adds_to_the_stream(coders, tiny_model, kind):
    columns = decoder_columns(
        read_coder(coders[kind]), tiny_model.device, readout_of(tiny_model)
    )  # fmt: skip
    files = sorted(coders[kind].glob("params_layer_*.safetensors"))
    rows = torch.cat([load_file(file)["w_dec"] for file in files])
    # A crosscoder writes the stream itself, at its last layer; a CLT adds to it at every layer.
    direction = rows[:, -1] if kind == "crosscoder" else rows.sum(dim=1)
    logits = (direction * (1 + tiny_model.module.model.norm.weight)) @ (
        tiny_model.module.lm_head.weight.T
    )
    for feature, found in enumerate(logits.topk(10, dim=1).indices.tolist()):
        assert columns["top_tokens"][feature].as_py() == found
        norm = columns["decoder_norm"][feature].as_py()
        assert norm == pytest.approx(float(rows[feature].norm()), rel=1e-5)


def test_a_missing_layer_is_refused_by_number(tmp_path, write_multi_layer):
    folder = write_multi_layer(tmp_path, "crosscoder", "layer_1_3_width_32_l0_big", n_layers=2)
    (folder / "params_layer_1.safetensors").rename(folder / "away")
    with pytest.raises(CoderFileError, match=r"i from 0 to 1, .* holds 0; fetch the others"):
        read_coder(folder)


def test_a_clt_of_fewer_layers_than_the_model_is_refused(tmp_path, write_multi_layer, tiny_model):
    folder = write_multi_layer(tmp_path, "clt", "width_64_l0_big", n_layers=4)
    with pytest.raises(CoderMismatchError, match=r"files for 4 layers; .* has 6"):
        check_fits(read_coder(folder), tiny_model)


def test_files_that_disagree_are_refused(tmp_path, write_multi_layer):
    folder = write_multi_layer(tmp_path, "crosscoder", "layer_1_3_width_32_l0_big", n_layers=2)
    tensors = load_file(folder / "params_layer_1.safetensors")
    tensors |= {k: tensors[k][..., :8].contiguous() for k in ("w_enc", "b_enc", "threshold")}
    tensors["w_dec"] = tensors["w_dec"][:8].contiguous()
    save_file(tensors, folder / "params_layer_1.safetensors")
    with pytest.raises(CoderFileError, match="params_layer_1"):
        read_coder(folder)


def test_a_decoder_that_is_not_causal_is_warned_of(coders, tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in coders.values():
            decoder_columns(read_coder(folder), tiny_model.device, readout_of(tiny_model))
    # As if output layers were counted from the encoder's own on.
    params = coders["crosscoder"] / "params_layer_2.safetensors"
    tensors = load_file(params)
    save_file(tensors | {"w_dec": tensors["w_dec"].roll(-2, 1).contiguous()}, params)
    with pytest.warns(CoderWarning, match=f"has {WIDTH} of 48 features that write to layers bef"):
        decoder_columns(read_coder(coders["crosscoder"]), tiny_model.device, readout_of(tiny_model))
