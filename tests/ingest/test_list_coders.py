"""Listing a repository: what is there, and what is missing from its grid."""

import json

import pytest

from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import CoderFileError
from scopelake.ingest.families import LAYERS
from scopelake.ingest.list_coders import list_coders


@pytest.fixture
def make_repo(tmp_path):
    """Return a function that makes empty files at the paths given, below a repository's folder."""

    def make(*paths, name="gemma-scope-2-1b-it"):
        for path in paths:
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"12345678")
        return tmp_path / name

    return make


def test_a_whole_grid_lacks_nothing():
    found = list_coders(tiny.coders_path())
    rows = found.table.to_pylist()
    assert len(rows) == 14
    assert all(row["config"] and row["n_bytes"] > 500_000 for row in rows)
    affine = [row["sae"] for row in rows if row["affine"]]
    assert affine == ["transcoder_all/layer_3_width_512_l0_small_affine"]
    # The grid of transcoders has both kinds; the tiny repository has one of each layer.
    assert set(found.missing) == {
        f"transcoder_all/layer_{n}_width_512_l0_small{end}"
        for n in range(6)
        for end in ("", "_affine")
        if (n == 3) != (end == "_affine")
    }


def test_gaps_partial_uploads_and_seeds(make_repo):
    repo = make_repo(
        "resid_post/layer_7_width_16k_l0_small/params.safetensors",
        "resid_post/layer_7_width_16k_l0_small/config.json",
        "resid_post/layer_13_width_65k_l0_small/params.safetensors",
        "resid_post/layer_13_width_65k_l0_small/examples.safetensors",
        "resid_post/layer_13_width_65k_l0_small_seed_1/params.safetensors",
        "crosscoder/layer_7_13_17_22_width_65k_l0_big/params_layer_0.safetensors",
        "crosscoder/layer_7_13_17_22_width_65k_l0_big/params_layer_3.safetensors",
        "clt/width_262k_l0_big/params_layer_0.safetensors",
        "clt/width_262k_l0_big/params_layer_1.safetensors",
        "clt/width_262k_l0_medium/params_layer_0.safetensors",
        "resid_post/notes/params.safetensors",
        "README.md",
        name="gemma-scope-2-other",
    )
    found = list_coders(repo)
    rows = {row["sae"]: row for row in found.table.to_pylist()}
    assert len(rows) == 6
    assert rows["resid_post/layer_7_width_16k_l0_small"]["config"]
    assert rows["resid_post/layer_13_width_65k_l0_small"]["n_bytes"] == 8
    assert rows["resid_post/layer_13_width_65k_l0_small_seed_1"]["seed"] == 1
    assert rows["crosscoder/layer_7_13_17_22_width_65k_l0_big"]["layers"] == "7,13,17,22"
    assert rows["clt/width_262k_l0_big"]["layers"] == "all"
    assert found.missing == (
        "resid_post/layer_7_width_65k_l0_small",
        "resid_post/layer_13_width_16k_l0_small",
    )
    assert found.incomplete == (
        "clt/width_262k_l0_medium",
        "crosscoder/layer_7_13_17_22_width_65k_l0_big",
    )


@pytest.mark.parametrize("size", ["270m-pt", "1b-it", "4b-pt", "12b-it", "27b-pt"])
def test_layers_of_a_known_size_that_are_absent_are_missing(make_repo, size):
    known = LAYERS[size.split("-")[0]]
    deep = known.deep_dive
    # Depths of 25, 50, 65 and 85 %.
    assert deep == tuple(int(depth * known.n_layers + 0.5) for depth in (0.25, 0.5, 0.65, 0.85))
    folder = "width_16k_l0_small"
    repo = make_repo(
        *(f"resid_post_all/layer_{n}_{folder}/params.safetensors"
          for n in range(known.n_layers) if n != 3),
        *(f"mlp_out/layer_{n}_{folder}/params.safetensors" for n in deep[:3]),
        *(f"clt/width_262k_l0_big/params_layer_{n}.safetensors" for n in range(known.n_layers - 1)),
        name=f"gemma-scope-2-{size}",
    )  # fmt: skip
    found = list_coders(repo)
    assert set(found.missing) == {
        f"resid_post_all/layer_3_{folder}", f"mlp_out/layer_{deep[3]}_{folder}",
    }  # fmt: skip
    assert found.incomplete == ("clt/width_262k_l0_big",)


def test_a_pattern_selects_what_is_there_and_what_is_missing(make_repo, capsys):
    repo = make_repo(
        *(f"resid_post_all/layer_{n}_width_{w}_l0_{label}/params.safetensors"
          for n in range(26) for w in ("16k", "262k") for label in ("small", "big")
          if (n, w, label) not in ((4, "16k", "small"), (4, "16k", "big"))),
        "resid_post/layer_7_width_16k_l0_small/params.safetensors",
        "clt/width_262k_l0_big/params_layer_0.safetensors",
    )  # fmt: skip
    found = list_coders(repo, "resid_post_all/*_width_16k_l0_small")
    assert found.table["sae"].to_pylist() == [
        f"resid_post_all/layer_{n}_width_16k_l0_small" for n in range(26) if n != 4
    ]
    assert found.missing == ("resid_post_all/layer_4_width_16k_l0_small",)
    assert found.incomplete == ()
    assert list_coders(repo, "clt/*").incomplete == ("clt/width_262k_l0_big",)
    with pytest.raises(CoderFileError, match=r"SAEs 'mlp_out/\*' of gemma-scope-2-1b-it .* it has"):
        list_coders(repo, "mlp_out/*")
    assert main(["saes", str(repo), "resid_post/*", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["layers"] for row in shown["saes"]] == ["7"]
    assert len(shown["missing"]) == 3


@pytest.mark.parametrize("given", ["/nowhere", "nowhere", "a/b/c", ""])
def test_what_is_no_folder_or_repository_is_refused(given):
    with pytest.raises(CoderFileError, match="there is no such folder"):
        list_coders(given)


def test_a_folder_without_coders_is_refused(make_repo):
    with pytest.raises(CoderFileError, match="holds no <family>"):
        list_coders(make_repo("README.md"))
