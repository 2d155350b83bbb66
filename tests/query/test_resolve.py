"""Which SAE a call means."""

from __future__ import annotations

import pytest

from scopelake.errors import (
    AmbiguousSaeError,
    FeatureNotFoundError,
    LayerNotFoundError,
    SaeNotFoundError,
)
from scopelake.query.resolve import SaeInfo, list_saes, resolve_sae
from scopelake.store.lake_store import LakeStore

ONE = "gs-2/resid_post/layer_1_width_12"
MLP = "gs-2/mlp_out/layer_2_width_12"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"sae": ONE}, ONE),
        ({"sae": "layer_1_width_12"}, ONE),
        ({"sae": "1_width_12"}, ONE),
        ({"layer": 1}, ONE),
        ({"site": "mlp_out"}, MLP),
        ({"layer": 2, "site": "mlp_out", "feature": 11}, MLP),
        ({"sae": "layer_2_width_12", "site": "mlp_out", "feature": 0}, MLP),
    ],
)
def test_a_unique_fit_is_found(built, asked, name):
    found = resolve_sae(list_saes(built.store, built.snapshot), **asked)
    assert found.name == name
    assert found.width == 12


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"sae": "layer_9"}, SaeNotFoundError, [ONE, MLP, "layer_9"]),
        ({"sae": "gs-2"}, SaeNotFoundError, [ONE]),
        ({"site": "attn_out"}, SaeNotFoundError, ["attn_out", MLP]),
        ({"layer": 7}, LayerNotFoundError, ["layer 7", "1, 2"]),
        ({"layer": 1, "site": "mlp_out"}, LayerNotFoundError, ["layers 2"]),
        ({"layer": 2}, AmbiguousSaeError, [MLP, "gs-2/resid_post/layer_2_width_12", "2 SAEs"]),
        ({}, AmbiguousSaeError, ["3 SAEs"]),
        ({"sae": "layer_2_width_12"}, AmbiguousSaeError, [MLP]),
        ({"sae": ONE, "feature": 12}, FeatureNotFoundError, ["feature 12", "0 to 11"]),
        ({"sae": ONE, "feature": -1}, FeatureNotFoundError, ["feature -1"]),
    ],
)
def test_anything_else_is_refused_and_lists_what_there_is(built, asked, error, says):
    with pytest.raises(error) as caught:
        resolve_sae(list_saes(built.store, built.snapshot), **asked)
    assert all(text in str(caught.value) for text in says)
    assert "\n" not in str(caught.value)


def test_a_full_name_wins_over_names_that_end_in_it():
    both = [SaeInfo("a/b", "resid_post", (1,), 4), SaeInfo("x/a/b", "resid_post", (1,), 4)]
    assert resolve_sae(both, sae="a/b").name == "a/b"


def test_an_empty_lake_has_none(tmp_path):
    store = LakeStore.create(tmp_path / "lake")
    with pytest.raises(SaeNotFoundError, match="ingest a corpus first"):
        resolve_sae(list_saes(store, store.snapshot()), layer=1)
