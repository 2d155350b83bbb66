"""Planning: what would mix two things under one name is refused before any work."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import scopelake
from scopelake import tiny
from scopelake.errors import (
    CoderMismatchError,
    CorpusNotFoundError,
    EncoderWarning,
    InvalidArgumentError,
)
from scopelake.ingest import worker
from scopelake.kernels import cpu
from scopelake.store import gathered, native, summary

SAE = "resid_post_all/layer_1_width_1024_l0_small"


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "a.txt").write_text("import os\n" * 20)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=32)
    return lake


def ingest(lake, folder, **options):
    return lake.ingest("text", model=tiny.MODEL_NAME, saes=[folder], device="cpu", **options)


def copy_sae(tmp_path, family):
    target = tmp_path / tiny.CODERS_REPO / family / SAE.split("/")[1]
    shutil.copytree(tiny.coders_path() / SAE, target)
    return target


def test_one_name_with_other_weights_is_refused(lake, tmp_path):
    ingest(lake, tiny.coders_path() / SAE)
    folder = copy_sae(tmp_path, "resid_post_all")
    tensors = load_file(folder / "params.safetensors")
    tensors["b_enc"][0] += 1
    save_file(tensors, folder / "params.safetensors")
    before = lake.snapshot
    with pytest.raises(CoderMismatchError, match=r"given with digest xxh3:.* must not be mixed"):
        ingest(lake, folder)
    lake.refresh()
    assert lake.snapshot == before


def test_equal_folders_of_two_families_are_two_coders(lake, tmp_path):
    ingest(lake, tiny.coders_path() / SAE)
    ingest(lake, copy_sae(tmp_path, "resid_post"))
    counts = lake.sql("SELECT sae, count(*) AS n FROM codes GROUP BY sae ORDER BY sae")
    assert counts["sae"].to_pylist() == [
        f"{tiny.CODERS_REPO}/{family}/{SAE.split('/')[1]}"
        for family in ("resid_post", "resid_post_all")
    ]
    assert len(set(counts["n"].to_pylist())) == 1


def test_another_tokenizer_is_refused(lake, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.model_path(), folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<unused0>"', '"<unused_0>"', 1))
    assert (folder / "tokenizer.json").read_text() != text
    with pytest.raises(CoderMismatchError, match="has another tokenizer"):
        lake.ingest("text", model=folder, saes=[tiny.coders_path() / SAE], device="cpu",
                    model_name=tiny.MODEL_NAME)  # fmt: skip


def test_settings_out_of_range_are_refused(lake):
    with pytest.raises(InvalidArgumentError, match="batch_tokens=0"):
        ingest(lake, tiny.coders_path() / SAE, batch_tokens=0)
    with pytest.raises(InvalidArgumentError, match="99"):
        ingest(lake, tiny.coders_path() / SAE, activation_bits=99)
    with pytest.raises(CorpusNotFoundError, match="the lake has text"):
        lake.ingest("nope", model=tiny.MODEL_NAME, saes=[SAE])


def test_another_precision_than_what_is_stored_is_refused(lake):
    ingest(lake, tiny.coders_path() / SAE, activation_bits=10)
    before = lake.snapshot
    with pytest.raises(CoderMismatchError, match="activation_bits=5 was asked for; .* with 10"):
        ingest(lake, tiny.coders_path() / SAE, activation_bits=5)
    with pytest.raises(CoderMismatchError, match="dtype=bfloat16 was asked for; .* with float32"):
        ingest(lake, tiny.coders_path() / SAE, dtype="bfloat16")
    lake.refresh()
    assert lake.snapshot == before
    lake.compact()
    with pytest.raises(CoderMismatchError, match="activation_bits=5 was asked for; .* with 10"):
        ingest(lake, tiny.coders_path() / SAE, activation_bits=5)
    other = "resid_post_all/layer_0_width_1024_l0_small"
    ingest(lake, tiny.coders_path() / other, activation_bits=5)  # of another coder nothing is said


def test_a_run_that_stored_nothing_says_nothing_of_the_precision(lake, monkeypatch):
    def stop(*words, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "encode_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(lake, tiny.coders_path() / SAE, activation_bits=10)
    lake.refresh()
    ingest(lake, tiny.coders_path() / SAE, activation_bits=5)
    ingest(lake, tiny.coders_path() / SAE, activation_bits=5)
    assert lake.sql("SELECT count(*) AS n FROM codes")["n"][0].as_py() > 0


def test_an_ingest_that_encodes_slowly_says_why(lake, monkeypatch):
    monkeypatch.setattr(cpu, "WHY_NOT", "the compiled encoder is not built (no compiler)")
    with pytest.warns(EncoderWarning, match=r"encoding with torch: 'cpu' cannot run: .*compiler"):
        ingest(lake, tiny.coders_path() / SAE)
    assert lake.sql("SELECT count(*) AS n FROM codes")["n"][0].as_py() > 0


def test_an_ingest_where_the_store_is_not_compiled_says_so(lake, monkeypatch):
    for module in (native, gathered, summary):
        monkeypatch.setattr(module, "WHY_NOT", "it is not built (no compiler)")
    with (
        pytest.warns(EncoderWarning, match=r"sorting with numpy: .*compiler"),
        pytest.warns(EncoderWarning, match=r"statistics with numpy: .*compiler"),
    ):
        ingest(lake, tiny.coders_path() / SAE)
    counted = lake.sql("SELECT sum(firings) AS n FROM features")["n"][0].as_py()
    assert (
        counted == lake.sql("SELECT count(*) AS n FROM codes WHERE kind <> 'bos'")["n"][0].as_py()
    )
