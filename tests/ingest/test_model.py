"""Models: the five real shapes resolve, both classes load, and what is not whole is refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import ModelError
from scopelake.ingest.capture import capture, decoder_layers, site_width
from scopelake.ingest.model import LoadedModel, ModelFiles, find_model, load_model
from scopelake.ingest.readout import read_readout
from scopelake.ingest.tokens import Tokenizer
from scopelake.named import model_called
from scopelake.names import SITES, SiteLayer

TEXT = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "sliding_window": 8,
    "query_pre_attn_scalar": 16, "max_position_embeddings": 256, "bos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "num_channels": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A published size; the figures are those of Google's conversion script."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int
    vocabulary: int
    multimodal: bool


SIZES = {
    "270m": Size(18, 640, 4, 1, 256, 2048, 262144, False),
    "1b": Size(26, 1152, 4, 1, 256, 6912, 262144, False),
    "4b": Size(34, 2560, 8, 4, 256, 10240, 262208, True),
    "12b": Size(48, 3840, 16, 8, 256, 15360, 262208, True),
    "27b": Size(62, 5376, 32, 16, 128, 21504, 262208, True),
}


def build_on_meta(size):
    """The model of that size without memory for its weights."""
    from transformers import (
        Gemma3Config,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
    )

    text = Gemma3TextConfig(
        vocab_size=size.vocabulary, hidden_size=size.d_model, num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads, num_key_value_heads=size.n_kv_heads,
        head_dim=size.head_dim, intermediate_size=size.d_mlp,
    )  # fmt: skip
    with torch.device("meta"):
        if size.multimodal:
            return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text.to_dict()))
        return Gemma3ForCausalLM(text)


@pytest.mark.parametrize("name", SIZES)
def test_every_site_of_every_size_resolves_with_its_width(name):
    size = SIZES[name]
    module = build_on_meta(size)
    model = LoadedModel(
        module=module, name=name, revision="", digest="", architecture="",
        n_layers=size.n_layers, d_model=size.d_model,
        attention_width=size.n_heads * size.head_dim, vocab_size=size.vocabulary,
        max_positions=32768, layer_floats=0, dtype="float32", device=torch.device("meta"),
    )  # fmt: skip
    layers = decoder_layers(module)
    assert len(layers) == size.n_layers
    for layer, block in enumerate(layers):
        widths = {site: site_width(model, SiteLayer(site, layer)) for site in SITES}
        assert block.self_attn.o_proj.in_features == widths["attn_out"]
        assert block.mlp.down_proj.out_features == widths["resid_post"] == size.d_model
        assert block.post_feedforward_layernorm.weight.shape == (widths["mlp_out"],)
        assert block.pre_feedforward_layernorm.weight.shape == (widths["mlp_in"],)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Small random models of both classes, saved as published ones are."""
    from transformers import (
        Gemma3Config,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    models = {
        "Gemma3ForCausalLM": Gemma3ForCausalLM(Gemma3TextConfig(**TEXT)),
        "Gemma3ForConditionalGeneration": Gemma3ForConditionalGeneration(config),
    }
    for name, model in models.items():
        model.eval().save_pretrained(root / name)
    return root, models


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"])
def test_both_classes_load_as_text_models(checkpoints, name):
    root, models = checkpoints
    model = load_model(find_model(root / name), device="cpu")
    assert (model.architecture, model.n_layers, model.d_model) == (name, 3, 32)
    assert model.attention_width == 64
    assert not [n for n, _ in model.module.named_parameters() if "vision" in n or "multi" in n]
    ids = np.array([2, 17, 250, 9, 31, 5, 100, 44, 8, 299], dtype=np.int32)
    site = SiteLayer("resid_post", 2)
    found = capture(model, [ids], [site])[site]
    whole = models[name]
    hidden = []
    last = decoder_layers(whole)[2].register_forward_hook(
        lambda m, args, out: hidden.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        whole(input_ids=torch.tensor(ids[None].astype(np.int64)))
    last.remove()
    # The same float32 arithmetic on the same weights; only kernels' blockings may differ.
    torch.testing.assert_close(found, hidden[0].view(10, 32), rtol=1e-5, atol=1e-5)


def test_the_text_decoders_names_of_any_version_load(checkpoints, tmp_path):
    """As published, as transformers from 4.52 on calls its modules, and without a vision tower."""
    root, _ = checkpoints
    source = root / "Gemma3ForConditionalGeneration"
    published = load_file(source / "model.safetensors")
    prefix = "language_model.model."
    assert any(name.startswith(prefix) for name in published)
    whole = load_model(find_model(source), device="cpu").module.state_dict()
    for number, other in enumerate(("model.language_model.", "model.")):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {
            name.replace(prefix, other): tensor for name, tensor in published.items()
            if name.startswith(prefix) or number == 0
        }  # fmt: skip
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(source / "config.json", folder)
        found = load_model(find_model(folder), device="cpu").module.state_dict()
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        readout = read_readout(find_model(folder), torch.device("cpu"))
        gain = 1 + whole["model.norm.weight"]
        torch.testing.assert_close(readout, (whole["lm_head.weight"] * gain).T)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoints, tmp_path):
    root, _ = checkpoints
    source = root / "Gemma3ForCausalLM"
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks 1 tensor \(model.layers.1.mlp.up_proj.weight"):
        load_model(find_model(tmp_path), device="cpu")


def test_pickled_weights_are_not_read(checkpoints, tmp_path):
    root, models = checkpoints
    torch.save(models["Gemma3ForCausalLM"].state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((root / "Gemma3ForCausalLM/config.json").read_text())
    with pytest.raises(ModelError, match="safetensors"):
        load_model(find_model(tmp_path), device="cpu")


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_in_a_models_folder_is_never_run(tmp_path, monkeypatch, part):
    """Also where the person at the terminal would say yes."""
    shutil.copytree(tiny.model_path(), tmp_path / "gemma")
    ran = tmp_path / "ran"
    (tmp_path / "gemma" / "odd.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Odd(PretrainedConfig): model_type = 'odd'\n"
        "class OddTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((tmp_path / "gemma" / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(config))
    settings = json.loads((tmp_path / "gemma" / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "odd.OddTokenizer"]}}
    (tmp_path / "gemma" / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    files = find_model(tmp_path / "gemma")
    if part == "tokenizer":
        # All that is needed of it is in tokenizer.json.
        assert Tokenizer.load(files.path, "gemma").bos_id == 2
    else:
        with pytest.raises(ModelError, match="cannot be loaded .*code") as caught:
            load_model(files, device="cpu")
        assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_damaged_is_refused(tmp_path, name):
    shutil.copytree(tiny.model_path(), tmp_path / "gemma")
    file = tmp_path / "gemma" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="'gemma' was asked for; .* cannot be loaded") as caught:
        Tokenizer.load(tmp_path / "gemma", "gemma")
    assert "\n" not in str(caught.value)


def test_float16_is_refused_with_the_reason(checkpoints):
    files = find_model(checkpoints[0] / "Gemma3ForCausalLM")
    with pytest.raises(ModelError, match="65504"):
        load_model(files, device="cpu", dtype="float16")


def test_float16_is_refused_with_the_reason_on_the_command_line_too(tmp_path, capsys):
    lake = str(tmp_path / "lake")
    assert main(["create", lake]) == 0
    sae = f"{tiny.CODERS_REPO}/resid_post_all/layer_1_width_1024_l0_small"
    options = ["--model", tiny.MODEL_NAME, "--sae", sae, "--dtype", "float16"]
    assert main(["inspect", lake, "x", *options]) == 2
    assert "65504" in capsys.readouterr().err


def test_other_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        load_model(ModelFiles(tmp_path, "x", "local"), device="cpu")


@pytest.mark.parametrize(
    ("model", "name"),
    [("google/gemma-3-1b-it", None), ("google/gemma-3-1b-it@refs/pr/1", None),
     ("google/gemma-3-1b-it@v2", "other"), (tiny.MODEL_NAME, None), (tiny.model_path(), None)],
)  # fmt: skip
def test_a_models_name_is_known_before_it_is_fetched(model, name):
    expected = "gemma-3-tiny" if isinstance(model, Path) else str(model).partition("@")[0]
    assert model_called(model, name) == (name or expected)
