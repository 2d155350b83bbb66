"""Arguments of the wrong type are refused in one line, as those out of range are."""

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import InvalidArgumentError

SAE = f"{tiny.CODERS_REPO}/resid_post_all/layer_3_width_1024_l0_small"
WRONG = (5.5, "5", True, None, [1])


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    root = tmp_path_factory.mktemp("arguments")
    (root / "text.txt").write_text("import os\n" * 20)
    lake = scopelake.create(root / "lake")
    lake.add_corpus("code", root / "text.txt", tokenizer=tiny.MODEL_NAME)
    lake.ingest("code", model=tiny.MODEL_NAME, saes=SAE, dense="resid_post/3")
    return lake


def refused(call, *args, **named):
    with pytest.raises(InvalidArgumentError) as caught:
        call(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_numbers_are_whole(lake, wrong):
    assert "feature" in refused(lake.top_contexts, wrong)
    assert "context" in refused(lake.features_at, wrong)
    # No window is the whole context.
    for name in ("k", *(("window",) if wrong is not None else ())):
        assert f"{name} {wrong!r} " in refused(lake.top_contexts, 1, **{name: wrong})
    if wrong is not None:
        assert "layer" in refused(lake.top_contexts, 1, layer=wrong)
        assert "position" in refused(lake.features_at, 0, wrong)
        assert "k " in refused(lake.features_at, 0, k=wrong)
        assert "snapshot" in refused(scopelake.open, lake.path, wrong)
    assert "layer" in refused(lake.activations, wrong)


def test_numpys_whole_numbers_are_numbers(lake):
    found = lake.features_at(np.int64(0), np.int32(2), k=np.int8(3))
    assert found.table.equals(lake.features_at(0, 2, k=3).table)
    assert lake.top_contexts(np.int64(3), k=np.uint8(2)).feature == 3


def test_names_and_queries_are_text(lake):
    for named in ({"sae": 5}, {"corpus": 5}, {"where": 5}, {"sae": "\ud800"}):
        assert next(iter(named)) in refused(lake.top_contexts, 1, **named)
    for query in (None, 5, b"SELECT 1", "SELECT '\udc80'"):
        assert "query" in refused(lake.sql, query)


@pytest.mark.parametrize(
    ("dense", "says"),
    [(["resid/3"], "resid_post/3"), ([5], "no pair"), ([("resid_post", "3")], "layer '3'"),
     ([("resid", 3)], "sites are"), (["resid_post"], "<name>/<layer>")],
)  # fmt: skip
def test_a_dense_site_is_spelt_as_a_pair_or_as_in_the_shell(lake, dense, says):
    options = {"model": tiny.MODEL_NAME, "saes": [SAE]}
    assert says in refused(lake.ingest, "code", dense=dense, **options)
    assert lake.ingest("code", dense=["resid_post/3"], **options).already_complete
    assert lake.ingest("code", dense=[("resid_post", 3)], **options).already_complete


def test_what_is_built_from_is_of_its_type(lake, tmp_path):
    options = {"model": tiny.MODEL_NAME, "saes": SAE}
    assert "prompt 5" in refused(lake.inspect, 5, **options)
    assert "k '5'" in refused(lake.inspect, "x", k="5", **options)
    assert "SAE 5" in refused(lake.ingest, "code", model=tiny.MODEL_NAME, saes=[5])
    for name in ("context_length", "shard_contexts"):
        assert name in refused(
            lake.add_corpus, "new", tmp_path, tokenizer=tiny.MODEL_NAME, **{name: "5"}
        )
    for name in ("activation_bits", "batch_tokens"):
        assert name in refused(lake.ingest, "code", **options, **{name: 2.5})
