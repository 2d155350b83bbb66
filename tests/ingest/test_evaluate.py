"""Evaluation against plain transformers, one context at a time, with the maths written out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scopelake
from scopelake import tiny
from scopelake.ingest.coders import read_coder
from scopelake.ingest.evaluate import EvaluationContext, evaluate, model_loss

LENGTHS = (2, 30, 64, 17)


@pytest.fixture(scope="module")
def contexts():
    rng = np.random.default_rng(4)
    ids = [np.r_[2, rng.integers(110, 4096, n - 1)].astype(np.int32) for n in LENGTHS]
    return [EvaluationContext(i, i != 2) for i in ids]


@pytest.fixture(scope="module")
def plain():
    from transformers import AutoModelForCausalLM

    path = str(tiny.model_path())
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def codes_of(x, tensors):
    pre = x @ tensors["w_enc"] + tensors["b_enc"]
    return torch.relu(pre) * (pre > tensors["threshold"])


def hooks_of(model, folder):
    config = json.loads((folder / "config.json").read_text())
    modules = []
    for key in ("hf_hook_point_in", "hf_hook_point_out"):
        path, _, end = config[key].rpartition(".")
        modules.append((model.get_submodule(path), end))
    return modules


def run_spliced(model, folder, tensors, ids, *, splice):
    """(input, target, loss from position 1 on) of one context; the target replaced if asked."""
    seen = {}
    (module_in, end_in), (module_out, end_out) = hooks_of(model, folder)

    def reconstruct(x):
        y = codes_of(x, tensors) @ tensors["w_dec"] + tensors["b_dec"]
        if "affine_skip_connection" in tensors:
            y = y + x @ tensors["affine_skip_connection"]
        return y

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    def read(value):
        seen["in"] = first(value)[0]

    def write(value):
        seen["out"] = first(value)[0].clone()
        if not splice:
            return None
        new = first(value).clone()
        new[0, 1:] = reconstruct(seen["in"][1:])
        return (new, *value[1:]) if isinstance(value, tuple) else new

    handles = []
    if end_in == "input":
        handles.append(module_in.register_forward_pre_hook(lambda m, args: read(args)))
    else:
        handles.append(module_in.register_forward_hook(lambda m, args, out: read(out)))
    if end_out == "input":
        handles.append(module_out.register_forward_pre_hook(lambda m, args: write(args)))
    else:
        handles.append(module_out.register_forward_hook(lambda m, args, out: write(out)))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0]
    for handle in handles:
        handle.remove()
    losses = torch.nn.functional.cross_entropy(
        logits[1:-1], torch.tensor(ids[2:].astype(np.int64)), reduction="none"
    )
    return seen["in"][1:], seen["out"][1:], losses.tolist()


@pytest.mark.parametrize(
    "name",
    ["resid_post_all/layer_3_width_1024_l0_small", "resid_post_all/layer_5_width_1024_l0_small",
     "attn_out_all/layer_3_width_512_l0_small", "mlp_out_all/layer_3_width_512_l0_small",
     "transcoder_all/layer_1_width_512_l0_small",
     "transcoder_all/layer_3_width_512_l0_small_affine"],
)  # fmt: skip
def test_figures_equal_the_written_out_maths(name, tiny_model, plain, contexts):
    folder = tiny.coders_path() / name
    tensors = load_file(folder / "params.safetensors")
    clean = [run_spliced(plain, folder, tensors, c.token_ids, splice=False) for c in contexts]
    spliced = [run_spliced(plain, folder, tensors, c.token_ids, splice=True) for c in contexts]
    x, y = (torch.cat([c[i] for c in clean]).double() for i in (0, 1))
    tensors = {k: v.double() for k, v in tensors.items()}
    codes = codes_of(x, tensors)
    z = codes @ tensors["w_dec"] + tensors["b_dec"]
    if "affine_skip_connection" in tensors:
        z += x @ tensors["affine_skip_connection"]
    fvu = float((y - z).square().sum() / (y - y.mean(0)).square().sum())
    loss = np.mean(sum((c[2] for c in clean), []))

    found_loss = model_loss(tiny_model, contexts)
    (found,) = evaluate(read_coder(folder), tiny_model, contexts, found_loss)
    assert (found.n_contexts, found.n_tokens) == (4, sum(LENGTHS) - 4)
    # float32 against float64 over six layers; a firing at its threshold may fall either way.
    assert found.fvu == pytest.approx(fvu, rel=1e-3)
    assert found.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()), abs=0.05)
    assert found.dead == pytest.approx(int((~(codes > 0).any(0)).sum()), abs=2)
    assert found.loss == found_loss == pytest.approx(loss, rel=1e-4)
    assert found.loss_spliced == pytest.approx(np.mean(sum((c[2] for c in spliced), [])), rel=1e-3)
    assert found.loss_spliced > 0


@pytest.mark.parametrize(
    ("family", "folder", "layers", "scale"),
    [("clt", "width_96_l0_big_affine", range(6), 0.2), ("clt", "width_96_l0_big", range(6), 0.2),
     ("crosscoder", "layer_1_3_4_width_48_l0_medium", (1, 3, 4), 0.1)],
)  # fmt: skip
def test_coders_of_several_layers_have_a_row_each(
    tmp_path, write_multi_layer, tiny_model, plain, contexts, family, folder, layers, scale
):
    affine, n = folder.endswith("_affine"), len(layers)
    path = write_multi_layer(tmp_path, family, folder, n_layers=n, scale=scale, affine=affine)
    found = evaluate(read_coder(path), tiny_model, contexts, 1.5)
    assert [e.layer for e in found] == list(layers)
    assert {e.loss_spliced for e in found} == {None}
    files = [load_file(path / f"params_layer_{i}.safetensors") for i in range(n)]
    read, written = inputs_and_targets(plain, family, layers, contexts)
    codes = [codes_of(x, t) for x, t in zip(read, files, strict=True)]
    for j, y in enumerate(written):
        z = files[j]["b_dec"]
        if affine:
            z = z + read[j] @ files[j]["affine_skip_connection"]
        for i in range(j + 1):  # causal: later encoders do not write here
            z = z + codes[i] @ files[i]["w_dec"][:, j]
        fvu = float((y - z).square().sum() / (y - y.mean(0)).square().sum())
        assert found[j].fvu == pytest.approx(fvu, rel=1e-3)
        assert found[j].l0 == pytest.approx(float((codes[j] > 0).sum(1).float().mean()), abs=0.05)


def inputs_and_targets(model, family, layers, contexts):
    """By layer, what the encoder reads and what is reconstructed, BOS left out."""
    seen, handles = {}, []
    for layer in layers:
        block = model.model.layers[layer]
        modules = {"in": block, "out": block}
        if family == "clt":
            modules = {"in": block.pre_feedforward_layernorm,
                       "out": block.post_feedforward_layernorm}  # fmt: skip
        for key, module in modules.items():
            handles.append(module.register_forward_hook(
                lambda m, args, out, k=(key, layer): seen.setdefault(k, []).append(
                    (out[0] if isinstance(out, tuple) else out)[0, 1:]
                )
            ))  # fmt: skip
    for context in contexts:
        with torch.no_grad():
            model(input_ids=torch.tensor(context.token_ids[None].astype(np.int64)))
    for handle in handles:
        handle.remove()
    return ([torch.cat(seen[key, layer]) for layer in layers] for key in ("in", "out"))


def test_the_lake_keeps_evaluations_and_shows_them(tmp_path):
    (tmp_path / "a.txt").write_text("import os\n\nprint(os.environ['HOME'])\n" * 20)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64)
    sae = "resid_post_all/layer_3_width_1024_l0_small"

    def ingest(**options):
        return lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / sae],
                           device="cpu", **options)  # fmt: skip

    ingest()
    assert lake.sql("SELECT * FROM evaluations").num_rows == 0
    done = ingest(evaluate=True)
    assert (done.n_shards, done.n_evaluated, done.already_complete) == (0, 1, False)
    assert ingest(evaluate=True).already_complete
    (row,) = lake.sql("SELECT * FROM evaluations").to_pylist()
    assert row["sae"].endswith(sae)
    assert (row["corpus"], row["layer"], row["run"]) == ("text", 3, done.run)
    codes = lake.sql("SELECT count(*) AS n FROM codes WHERE kind <> 'bos'").to_pylist()[0]["n"]
    assert row["l0"] == pytest.approx(codes / row["n_tokens"], rel=1e-3)
    assert 0 < row["fvu"] < 1
    assert f"FVU {row['fvu']:.3f}" in lake.info().to_text()


def test_one_token_has_no_variance_to_explain(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME)
    sae = tiny.coders_path() / "resid_post_all/layer_3_width_1024_l0_small"
    lake.ingest("text", model=tiny.MODEL_NAME, saes=[sae], device="cpu", evaluate=True)
    (row,) = lake.sql("SELECT n_tokens, isnan(fvu) AS none, l0 FROM evaluations").to_pylist()
    assert (row["n_tokens"], row["none"]) == (1, True)
    assert row["l0"] > 0
    assert "FVU nan" in lake.info().to_text()
