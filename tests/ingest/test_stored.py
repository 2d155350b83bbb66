"""Encoding stored activations: what an ingest would give, but for their rounding to bfloat16."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    CoderMismatchError,
    DamagedFileError,
    InvalidArgumentError,
    LayerNotFoundError,
    ModelError,
)

FIRST = tiny.coders_path() / "resid_post_all/layer_0_width_1024_l0_small"
CODER = tiny.coders_path() / "resid_post_all/layer_3_width_1024_l0_small"
MULTI = tiny.coders_path() / "mlp_out_all/layer_3_width_512_l0_small"
DENSE = [("resid_post", 3), ("mlp_out", 3)]


def make(path, dtype):
    """A lake with a coder and two dense sites on 4 shards."""
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    source = path.with_suffix(".txt")
    source.write_text(text[:6000])
    lake = scopelake.create(path)
    lake.add_corpus("text", source, tokenizer=tiny.MODEL_NAME, context_length=64, shard_contexts=8)
    lake.ingest("text", model=tiny.MODEL_NAME, saes=FIRST, dense=DENSE, device="cpu", dtype=dtype)
    return lake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    return {dtype: make(root / dtype, dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture
def lake(made, tmp_path):
    return scopelake.open(shutil.copytree(made["float32"].path, tmp_path / "lake"))


def copy(made, dtype, tmp_path):
    return scopelake.open(shutil.copytree(made[dtype].path, tmp_path / f"copy-{dtype}"))


def encode(lake, saes=CODER, **options):
    return lake.encode("text", saes=saes, device="cpu", activation_bits=23, **options)


def rows(lake, sae=CODER):
    query = ("SELECT context, position, feature, activation, kind FROM codes WHERE sae LIKE ? "
             "ORDER BY ALL")  # fmt: skip
    table = lake.sql(query, [f"%{sae.parent.name}/{sae.name}"])
    return {tuple(r.values())[:3]: (r["activation"], r["kind"]) for r in table.to_pylist()}


def test_firings_are_those_of_the_stored_values(lake):
    """An oracle of its own: the array and the file, float64."""
    encode(lake)
    tensors = load_file(CODER / "params.safetensors")
    w, b, threshold = (tensors[k].double().numpy() for k in ("w_enc", "b_enc", "threshold"))
    array = np.asarray(lake.activations(3)[:]).astype(np.float64)
    lengths = lake.sql("SELECT n_tokens FROM contexts ORDER BY context")["n_tokens"].to_pylist()
    found, seen, n_near = rows(lake), 0, 0
    for context, length in enumerate(lengths):
        x = array[context, :length]
        pre = x @ w + b
        # Sums of float32 products: the bound that docs/encoding.md states.
        band = (258 + w.shape[0] / 256) * 2.0**-24 * (np.abs(x) @ np.abs(w) + np.abs(b))
        for position, feature in np.argwhere(pre > threshold - band).tolist():
            value, size = pre[position, feature], band[position, feature]
            key = (context, position, feature)
            if key in found:
                assert abs(found[key][0] - value) <= size
                seen += 1
            else:
                assert value <= threshold[feature] + size
                n_near += 1
    assert seen == len(found) > 1000
    assert n_near < 10


def test_of_a_bfloat16_model_it_is_what_the_ingest_gives(made, tmp_path):
    stored, live = copy(made, "bfloat16", tmp_path), made["bfloat16"]
    live = scopelake.open(shutil.copytree(live.path, tmp_path / "live"))
    live.ingest("text", model=tiny.MODEL_NAME, saes=[CODER, MULTI], device="cpu", dtype="bfloat16",
                activation_bits=23)  # fmt: skip
    encode(stored, [CODER, MULTI], unembedding=tiny.model_path())
    for sae in (CODER, MULTI):
        assert rows(stored, sae) == rows(live, sae)
    for table in ("peaks", "samples", "features"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert stored.sql(query).equals(live.sql(query))


def test_of_a_float32_model_it_differs_by_rounding(lake, made, tmp_path):
    live = copy(made, "float32", tmp_path)
    live.ingest("text", model=tiny.MODEL_NAME, saes=CODER, device="cpu", dtype="float32",
                activation_bits=23)  # fmt: skip
    encode(lake)
    tensors = load_file(CODER / "params.safetensors")
    size = tensors["w_enc"].double().norm(dim=0).numpy()
    # By Cauchy and Schwarz: each value is rounded by less than 2^-8 of it (8 significant bits).
    array = np.asarray(lake.activations(3)[:]).astype(np.float64)
    norms = np.linalg.norm(array, axis=2) * 2.0**-8
    mine, theirs = rows(lake), rows(live)
    threshold = tensors["threshold"].numpy()
    for key in mine.keys() | theirs.keys():
        bound = norms[key[0], key[1]] * size[key[2]]
        a = mine.get(key, (threshold[key[2]], 0))[0]
        b = theirs.get(key, (threshold[key[2]], 0))[0]
        assert abs(a - b) <= bound
    assert len(mine.keys() ^ theirs.keys()) < 0.02 * len(theirs)


def test_it_resumes_and_makes_nothing_twice(lake):
    done = encode(lake)
    assert done.n_shards > 3
    before = lake.snapshot
    assert encode(lake).already_complete
    assert lake.snapshot == before
    again = encode(lake, [CODER, MULTI])
    assert again.n_shards == done.n_shards
    assert lake.sql("SELECT count(DISTINCT sae) AS n FROM features")["n"][0].as_py() == 3
    assert lake.verify().is_whole


def test_without_the_unembedding_the_tokens_are_null_and_the_rest_is_there(lake):
    encode(lake)
    encode(lake, MULTI, unembedding=tiny.MODEL_NAME)
    query = ("SELECT count(*) AS n, count(top_tokens) AS tokens, count(decoder_norm) AS norms, "
             "sum(firings) AS firings FROM features WHERE sae LIKE ?")  # fmt: skip
    (plain,) = lake.sql(query, [f"%{CODER.name}"]).to_pylist()
    assert (plain["tokens"], plain["norms"]) == (0, plain["n"])
    assert plain["firings"] > 0
    (with_tokens,) = lake.sql(query, [f"%{MULTI.parent.name}/{MULTI.name}"]).to_pylist()
    assert with_tokens["tokens"] == with_tokens["n"]
    runs = lake.sql("SELECT config, dtype FROM runs ORDER BY started_at").to_pylist()
    assert '"activations": "stored"' in runs[-1]["config"]
    assert runs[-1]["dtype"] == "bfloat16 of float32"


def test_what_is_not_stored_is_refused_before_anything_is_done(lake, tmp_path):
    before = lake.snapshot
    with pytest.raises(LayerNotFoundError, match="resid_post/5"):
        encode(lake, tiny.coders_path() / "resid_post_all/layer_5*")
    with pytest.raises(CoderMismatchError, match="other"):
        encode(lake, model="other")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        encode(lake, unembedding=tmp_path)
    changed = shutil.copytree(tiny.model_path(), tmp_path / "model")
    (changed / "config.json").write_text((changed / "config.json").read_text() + "\n")
    with pytest.raises(CoderMismatchError, match="digest"):
        encode(lake, unembedding=changed)
    with pytest.raises(InvalidArgumentError, match="batch_tokens=0"):
        encode(lake, batch_tokens=0)
    assert scopelake.open(lake.path).snapshot == before


def test_firings_of_the_model_and_of_its_rounded_activations_are_not_mixed(lake):
    lake.ingest("text", model=tiny.MODEL_NAME, saes=CODER, device="cpu", dtype="float32")
    with pytest.raises(CoderMismatchError, match="dtype=bfloat16 of float32 was asked for"):
        lake.encode("text", saes=CODER, device="cpu")


def test_a_site_that_is_stored_in_part_is_refused(lake):
    shard = next(iter(lake.path.glob("activations/**/layer_3/c/2/0/0")))
    shard.unlink()
    main(["verify", str(lake.path), "--repair"])
    with pytest.raises(LayerNotFoundError, match="1 of .* shards is not stored, the first is 2"):
        encode(scopelake.open(lake.path), [CODER, MULTI])


def test_a_damaged_chunk_stops_it_and_the_rest_goes_on_after_a_repair(lake):
    shard = next(iter(lake.path.glob("activations/**/resid_post/layer_3/c/3/0/0")))
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 8
    shard.write_bytes(data)
    with pytest.raises(DamagedFileError, match="scopelake verify"):
        encode(lake)
    lake = scopelake.open(lake.path)
    assert lake.repair(lake.verify()).ingest_again
    lake.ingest("text", model=tiny.MODEL_NAME, saes=FIRST, dense=DENSE, device="cpu")
    assert encode(lake).n_shards > 0
    assert lake.verify().is_whole


def test_a_shard_that_is_gone_gives_no_firings_of_zeros(lake):
    shard = next(iter(lake.path.glob("activations/**/resid_post/layer_3/c/3/0/0")))
    shard.unlink()
    with pytest.raises(DamagedFileError, match="shard 3 is gone"):
        encode(lake)
    with pytest.raises(DamagedFileError, match="shard 3 is gone"):
        list(scopelake.open(lake.path).stream(3, batch_tokens=64))


def test_the_precision_is_that_of_the_shards_that_are_read(lake):
    """Not of other sites that are encoded in the same call."""
    lake.ingest("text", model=tiny.MODEL_NAME, saes=[], dense=["resid_post/1"], device="cpu",
                dtype="bfloat16")  # fmt: skip
    other = tiny.coders_path() / "resid_post_all/layer_1_width_1024_l0_small"
    with pytest.raises(CoderMismatchError, match=r"resid_post/1 of bfloat16.*resid_post/3 of fl"):
        encode(lake, [CODER, other])
    assert encode(lake, CODER).n_shards > 0
    assert encode(lake, other).n_shards > 0
    assert encode(lake, CODER).already_complete


def test_the_command_line_encodes(lake, capsys):
    words = ["encode", str(lake.path), "text", "--sae", str(CODER), "--device", "cpu"]
    assert main(words) == 0
    assert "firings" in capsys.readouterr().out
    assert main(words) == 0
    assert "complete already" in capsys.readouterr().out
    assert main([*words[:-3], str(tiny.coders_path() / "resid_post_all/layer_4*")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "resid_post/4" in error


def test_the_unembedding_read_from_files_is_the_models(tiny_model):
    from scopelake.ingest.decoder_rows import readout_of
    from scopelake.ingest.model import ModelFiles
    from scopelake.ingest.readout import read_readout

    files = ModelFiles(tiny.model_path(), tiny.MODEL_NAME, "local")
    assert torch.equal(read_readout(files, torch.device("cpu")), readout_of(tiny_model))
