"""A coder that is what was published agrees with its examples; one that is not does not."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    CoderMismatchError,
    CorpusNotFoundError,
    InvalidArgumentError,
    ModelError,
)
from scopelake.ingest.check_sae import check_sae
from scopelake.ingest.coders import read_coder

# The oracle runs the same model in float32, a row at a time; padding changes no more than this.
RELATIVE = 1e-4


@pytest.fixture
def lake(tmp_path, published):
    lake = scopelake.create(tmp_path / "lake")
    lake.import_examples([published.folder], tokenizer=tiny.MODEL_NAME)
    return lake


def check(lake, folder, **options):
    (found,) = lake.check_saes([folder], model=tiny.MODEL_NAME, device="cpu", **options)
    return found


def rewrite(folder, **changes):
    """Change the coder's weights; what changes is a function of the tensor."""
    tensors = load_file(folder / "params.safetensors")
    for name, change in changes.items():
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "params.safetensors")


def count(published, contexts):
    """Examples in these contexts, BOS left out."""
    f = published.firings
    total = 0
    for a, c, p in zip(*(f[k].ravel() for k in ("activations", "seq_ids", "positions")),
                       strict=True):  # fmt: skip
        position = p - published.columns[c][0]
        total += a > 0 and c in contexts and published.rows[c][position] != 2
    return total


def test_the_published_coder_agrees(lake, published):
    found = check(lake, published.folder)
    assert found.agrees
    assert found.n_contexts == 13
    assert found.n_examples == found.n_agree == count(published, range(13))
    assert (found.n_silent, found.n_unlisted) == (0, 0)
    assert found.max_error < RELATIVE
    assert "agrees, 100.0% of" in found.to_text()


def test_a_sample_is_a_part_and_depends_on_the_seed(lake, published):
    some = {check(lake, published.folder, n_contexts=3, seed=s).n_examples for s in range(4)}
    assert len(some) > 1
    assert max(some) < count(published, range(13))


@pytest.mark.parametrize(
    "changes",
    [
        {"w_enc": lambda w: w.flip(1)},
        {"w_enc": lambda w: w * 1.1},
        {"w_enc": lambda w: w.view(64, 128).T},
        {"threshold": lambda t: t * 50},
    ],
)
def test_another_coder_disagrees(lake, published, changes):
    rewrite(published.folder, **changes)
    found = check(lake, published.folder)
    assert not found.agrees
    assert "DISAGREES" in found.to_text()


def test_a_coder_that_never_fires_is_silent(lake, published):
    rewrite(published.folder, threshold=lambda t: torch.full_like(t, 1e9))
    found = check(lake, published.folder)
    assert found.n_silent == found.n_examples
    assert (found.n_agree, found.median_error) == (0, None)
    assert "none fires" in found.to_text()


def test_firings_that_the_lists_lack_are_found(tmp_path, published, write_examples):
    """Half of the contexts are taken off every list; their strong firings are unlisted."""
    gone = published.firings["seq_ids"] % 2 == 0
    for feature in range(64):
        for name in ("activations", "seq_ids", "positions"):
            values = published.firings[name][feature]
            kept = values[~gone[feature]]
            values[:] = np.concatenate([kept, np.zeros(len(values) - len(kept), values.dtype)])
    write_examples(published.folder, published.tokens, published.firings)
    lake = scopelake.create(tmp_path / "lake")
    lake.import_examples([published.folder], tokenizer=tiny.MODEL_NAME)
    found = check(lake, published.folder)
    assert found.n_agree == found.n_examples
    assert found.n_unlisted > 0.05 * found.n_examples
    assert not found.agrees


def test_what_cannot_be_checked_is_refused(tmp_path, lake, published, write_coder):
    with pytest.raises(InvalidArgumentError, match="n_contexts=0"):
        check(lake, published.folder, n_contexts=0)
    for seed in (-1, 1 << 32):
        with pytest.raises(InvalidArgumentError, match=f"seed={seed} was asked for; it is out of"):
            check(lake, published.folder, seed=seed)
    with pytest.raises(CorpusNotFoundError, match="the lake has them on none"):
        check(lake, write_coder(tmp_path, folder="layer_2_width_64_l0_small"))
    with pytest.raises(CorpusNotFoundError, match="'x' were asked for; the lake has them on gemma"):
        check(lake, published.folder, corpus="x")
    lake.import_examples([published.folder], tokenizer=tiny.MODEL_NAME, corpus="copy")
    with pytest.raises(InvalidArgumentError, match="name one with corpus"):
        check(lake, published.folder)
    assert check(lake, published.folder, corpus="copy").agrees
    with pytest.raises(CoderMismatchError, match="the model given is another"):
        lake.check_saes([published.folder], model=tiny.MODEL_NAME, model_name="another")


def test_tokens_that_the_model_does_not_know_are_refused(lake, published, tiny_model):
    small = dataclasses.replace(tiny_model, vocab_size=300)
    with pytest.raises(ModelError, match="knows 300 tokens"):
        check_sae(lake._store, lake._snapshot, read_coder(published.folder), small)


def test_a_sample_without_examples_is_not_called_agreement(tmp_path, published, write_examples):
    published.firings["activations"][:] = 0
    write_examples(published.folder, published.tokens, published.firings)
    lake = scopelake.create(tmp_path / "lake")
    lake.import_examples([published.folder], tokenizer=tiny.MODEL_NAME)
    found = check(lake, published.folder)
    assert not found.agrees
    assert "not checked, no examples in 13 contexts" in found.to_text()


def test_the_command_line_imports_and_checks(tmp_path, published, capsys):
    lake = str(tmp_path / "lake")
    assert main(["create", lake]) == 0
    coder = ["--sae", str(published.folder)]
    assert main(["import-examples", lake, *coder, "--tokenizer", tiny.MODEL_NAME]) == 0
    assert "examples of" in capsys.readouterr().out.splitlines()[-1]
    options = ["--model", tiny.MODEL_NAME, "--contexts", "8"]
    assert main(["check-sae", lake, *coder, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    assert found["n_contexts"] == 8
    rewrite(published.folder, w_enc=lambda w: w.flip(0))
    assert main(["check-sae", lake, *coder, *options]) == 1
    assert "DISAGREES" in capsys.readouterr().out
    assert main(["top", lake, "1", "--layer", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert "published examples only" in shown.err
    assert all("activation" in json.loads(line) for line in shown.out.splitlines())
    assert main(["check-sae", lake, *coder, *options, "--seed", "-1"]) == 2
    assert capsys.readouterr().err.startswith("scopelake: --seed -1 was asked for; it is out of")
    assert main(["import-examples", lake, *coder, "--tokenizer", tiny.MODEL_NAME, "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
