"""Coder files: read in Gemma Scope 2's layout, refused with both names where they do not fit."""

import dataclasses
import warnings
from contextlib import nullcontext

import pytest
import torch

from scopelake import tiny
from scopelake.errors import CoderFileError, CoderMismatchError, CoderWarning
from scopelake.ingest import coder_weights
from scopelake.ingest.coder_weights import load_decoder, load_encoders
from scopelake.ingest.coders import check_fits, read_coder
from scopelake.ingest.families import is_of_width, parse_folder
from scopelake.ingest.find_coders import find_coders
from scopelake.names import SiteLayer

CPU = torch.device("cpu")


def test_a_coder_says_what_it_is(tmp_path, write_coder):
    folder = "layer_3_width_64_l0_big_affine"
    path = write_coder(
        tmp_path, "transcoder_all", folder, affine_skip_connection=torch.ones(128, 128)
    )
    coder = read_coder(path)
    assert coder.name == f"gemma-scope-2-test/transcoder_all/{folder}"
    assert coder.sites == (SiteLayer("mlp_in", 3),)
    assert coder.targets == (SiteLayer("mlp_out", 3),)
    assert (coder.type, coder.affine, coder.width, coder.l0) == ("transcoder", True, 64, 10.0)
    assert coder.hook_in == "model.layers.3.pre_feedforward_layernorm.output"
    assert coder.hook_out == "model.layers.3.post_feedforward_layernorm.output"
    (encoder,) = load_encoders(coder, CPU)
    assert encoder.w_enc.shape == (128, 64)
    decoder = load_decoder(coder, CPU)
    assert decoder.skip is not None
    assert decoder.skip.shape == (1, 128, 128)


def test_a_folder_without_config_is_read_by_its_name(tmp_path, write_coder, tiny_model):
    with pytest.warns(CoderWarning, match="which model it was trained on"):
        coder = read_coder(write_coder(tmp_path, "mlp_out", config=False))
    assert coder.sites == (SiteLayer("mlp_out", 1),)
    assert (coder.model_name, coder.l0) == (None, None)
    check_fits(coder, tiny_model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["threshold"]}, "lacks threshold"),
        ({"b_enc": torch.zeros(63)}, r"b_enc is F32 \[63\], expected F32 \[64\]"),
        ({"w_enc": torch.zeros(64, 128)}, r"w_enc is F32 \[64, 128\], expected F32 \[128, 64\]"),
        ({"w_dec": torch.zeros(128, 64)}, r"w_dec is F32 \[128, 64\]"),
        ({"w_enc": torch.zeros(128, 64, dtype=torch.float16)}, "w_enc is F16"),
        ({"w_enc": torch.zeros(4, 128, 64)}, "a single-layer coder"),
        ({"folder": "layer_x_width_64_l0_small"}, "is not Gemma Scope 2's"),
        ({"family": "residual"}, "is not Gemma Scope 2's"),
    ],
)
def test_malformed_coders_are_refused(tmp_path, write_coder, changes, message):
    with pytest.raises(CoderFileError, match=message):
        read_coder(write_coder(tmp_path, **changes))


def test_negative_thresholds_and_broken_files_are_refused(tmp_path, write_coder):
    path = write_coder(tmp_path, threshold=torch.full((64,), -0.1))
    with pytest.raises(CoderFileError, match="negative threshold"):
        load_encoders(read_coder(path), CPU)
    (path / "params.safetensors").write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CoderFileError, match="not a whole safetensors file"):
        read_coder(path)
    (path / "params.safetensors").rename(path / "params.pt")
    with pytest.raises(CoderFileError, match="pickled weights are not read"):
        read_coder(path)


def test_another_model_width_or_layer_is_refused_naming_both(tmp_path, write_coder, tiny_model):
    other = write_coder(tmp_path / "a", config={"model_name": "google/gemma-3-1b-it"})
    with pytest.raises(CoderMismatchError, match=r"google/gemma-3-1b-it.*scopelake/gemma-3-tiny"):
        check_fits(read_coder(other), tiny_model)
    wide = write_coder(tmp_path / "b", d_in=192)
    with pytest.raises(CoderMismatchError, match="reads 192 values; resid_post/1 .* has 128"):
        check_fits(read_coder(wide), tiny_model)
    deep = write_coder(tmp_path / "c", folder="layer_6_width_64_l0_small")
    with pytest.raises(CoderMismatchError, match="layers 0 to 5"):
        check_fits(read_coder(deep), tiny_model)


@pytest.mark.parametrize(
    ("trained_on", "given"),
    [("google/gemma-3-1b-it", "google/gemma-3-1b-pt"), ("gemma-3-1b-pt", "google/gemma-3-1b-it"),
     ("gemma-v3-1b-it", "google/gemma-3-1b-pt"), ("gemma-3-270m-pt", "google/gemma-3-270m-it"),
     ("google/gemma-3-270m-it", "google/gemma-3-270m")],
)  # fmt: skip
def test_pt_and_it_are_not_crossed(tmp_path, write_coder, tiny_model, trained_on, given):
    coder = read_coder(write_coder(tmp_path, config={"model_name": trained_on}))
    with pytest.raises(CoderMismatchError, match=rf"trained on {trained_on}; .* is {given};"):
        check_fits(coder, dataclasses.replace(tiny_model, name=given))


@pytest.mark.parametrize("name", ["gemma-3-270m-pt", "gemma-v3-270m-pt", "google/gemma-3-270m"])
def test_270m_is_called_without_pt(tmp_path, write_coder, tiny_model, name):
    coder = read_coder(write_coder(tmp_path, config={"model_name": name}))
    check_fits(coder, dataclasses.replace(tiny_model, name="google/gemma-3-270m"))


@pytest.mark.parametrize(("size", "fits"), [("1b-it", True), ("1b-pt", False), ("4b-it", False)])
def test_without_config_the_repository_says_the_model(
    tmp_path, write_coder, tiny_model, size, fits
):
    (write_coder(tmp_path, config=False).parents[1]).rename(tmp_path / f"gemma-scope-2-{size}")
    (coder,) = find_coders([tmp_path / f"gemma-scope-2-{size}"])
    model = dataclasses.replace(tiny_model, name="google/gemma-3-1b-it")
    with nullcontext() if fits else pytest.raises(CoderMismatchError, match=f"gemma-3-{size}"):
        check_fits(coder, model)


def test_a_config_that_is_no_object_is_refused(tmp_path, write_coder):
    with pytest.raises(CoderFileError, match="is no JSON object"):
        read_coder(write_coder(tmp_path, config=[1]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "topk"}, "says architecture 'topk'; scopelake reads 'jump_relu'"),
        ({"hf_hook_point_in": "model.layers.2.output"},
         r"name says model.layers.1.output and its config.json, as hf_hook_point_in, .*layers.2"),
        ({"hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output"},
         "name says model.layers.1.output and its config.json, as hf_hook_point_out, "),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_its_folder_is_refused(tmp_path, write_coder, config, says):
    with pytest.raises(CoderFileError, match=says):
        read_coder(write_coder(tmp_path, config=config))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "transcoder"}, "of type 'transcoder', not 'sae'; what"),
        ({"width": 65}, "of width 65, not 64; what"),
        ({"affine_connection": True, "width": None, "type": "sae"}, "of affine_connection True, n"),
    ],
)
def test_a_config_of_other_facts_is_warned_of_and_not_believed(tmp_path, write_coder, config, says):
    with pytest.warns(CoderWarning, match=says):
        coder = read_coder(write_coder(tmp_path, config={"model_name": "m", **config}))
    assert (coder.type, coder.width, coder.affine) == ("sae", 64, False)


def test_a_config_may_name_the_multimodal_modules(tmp_path, write_coder):
    point = "model.language_model.layers.1.output"
    coder = read_coder(write_coder(tmp_path, config={"hf_hook_point_in": point}))
    assert coder.hook_in == point


def test_a_width_that_is_not_the_folders_is_refused_naming_both(tmp_path, write_coder):
    path = write_coder(tmp_path, folder="layer_1_width_16k_l0_small")
    with pytest.raises(CoderFileError, match="files have 64 features .* name says 16k"):
        read_coder(path)


@pytest.mark.parametrize(
    ("family", "label", "width", "fits"),
    [
        ("resid_post", "16k", 16384, True), ("resid_post", "65k", 65536, True),
        ("resid_post", "262k", 262144, True), ("resid_post", "1m", 1 << 20, True),
        ("resid_post", "512", 512, True), ("resid_post", "512", 511, False),
        ("resid_post", "16k", 65536, False), ("resid_post", "262k", 262080, False),
        ("crosscoder", "524k", 524288, True), ("crosscoder", "512k", 524288, True),
        ("clt", "262k", 262080, True), ("clt", "524k", 524160, True),
        ("clt", "262k", 524160, False), ("crosscoder", "65k", 16384, False),
    ],
)  # fmt: skip
def test_widths_by_label(family, label, width, fits):
    layers = {"resid_post": "layer_1_", "crosscoder": "layer_1_2_3_4_", "clt": ""}[family]
    name = parse_folder(family, f"{layers}width_{label}_l0_big")
    assert is_of_width(name, width) == fits


def test_a_coder_whose_model_nothing_tells_is_warned_of(tmp_path, write_coder):
    path = write_coder(tmp_path, config=False)
    with pytest.warns(CoderWarning, match="gemma-scope-2-test is not called gemma-scope-2-<mod"):
        read_coder(path)
    path.parents[1].rename(tmp_path / "gemma-scope-2-1b-it")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_coder(tmp_path / "gemma-scope-2-1b-it" / path.parent.name / path.name)


@pytest.mark.parametrize("name", ["gemma-3-tiny", "gemma-v3-tiny", "scopelake/gemma-3-tiny"])
def test_published_spellings_of_a_model_are_the_same_model(tmp_path, write_coder, tiny_model, name):
    check_fits(read_coder(write_coder(tmp_path, config={"model_name": name})), tiny_model)


def test_specs_name_a_coder_a_family_a_repo_or_a_pattern():
    repo = tiny.coders_path()
    everything = find_coders([repo])
    assert len(everything) == 14
    assert len(find_coders([repo / "resid_post_all"])) == 6
    assert len(find_coders([f"{repo}/*/layer_3_*"])) == 4
    one = repo / "resid_post_all" / "layer_3_width_1024_l0_small"
    assert [c.name for c in find_coders([one, repo / "resid_post_all", one])] == [
        c.name for c in everything if c.family == "resid_post_all"
    ]


def test_specs_that_name_nothing_or_a_name_twice_are_refused(tmp_path, write_coder):
    with pytest.raises(CoderFileError, match="no such folder"):
        find_coders([tmp_path / "absent"])
    with pytest.raises(CoderFileError, match="the folder holds no params.safetensors"):
        find_coders([tmp_path])
    with pytest.raises(CoderFileError, match="no SAE was asked for"):
        find_coders([])
    a, b = write_coder(tmp_path / "a"), write_coder(tmp_path / "b")
    with pytest.raises(CoderFileError, match="asked for twice"):
        find_coders([a, b])


def test_a_mapped_encoder_is_the_loaded_one(tmp_path, write_coder, monkeypatch):
    coder = read_coder(write_coder(tmp_path))
    (loaded,) = load_encoders(coder, CPU)
    monkeypatch.setattr(coder_weights, "MAPPED_BYTES", 1)
    (mapped,) = load_encoders(coder, CPU)
    assert torch.equal(mapped.w_enc, loaded.w_enc)
    (half,) = load_encoders(coder, CPU, torch.bfloat16)
    assert torch.equal(half.w_enc, loaded.w_enc.bfloat16())
