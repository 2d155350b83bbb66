"""Arguments of the wrong type are refused in one line, as those out of range are."""

import os
from pathlib import Path

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import InvalidArgumentError, SaeNotFoundError

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
    for model in (None, 5, " "):
        assert f"model {model!r}" in refused(lake.ingest, "code", model=model, saes=SAE)
        assert f"model {model!r}" in refused(scopelake.plan, 1e6, model=model, saes=SAE)
    for scheduler in (5, "", ["tcp://here:1"]):
        assert f"scheduler {scheduler!r}" in refused(
            lake.ingest, "code", **options, scheduler=scheduler
        )
    for tokens in ("1e6", None, [1]):
        assert f"tokens={tokens!r}" in refused(scopelake.plan, tokens, model="x", saes=SAE)
    for name in ("context_length", "shard_contexts"):
        assert name in refused(
            lake.add_corpus, "new", tmp_path, tokenizer=tiny.MODEL_NAME, **{name: "5"}
        )
    for name in ("activation_bits", "batch_tokens"):
        assert name in refused(lake.ingest, "code", **options, **{name: 2.5})


def files(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def told(capsys, *arguments):
    """What the shell says of what it refuses."""
    assert main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_nothing_is_written_into_a_lake(lake, tmp_path, capsys):
    before = files(lake.path)
    (tmp_path / "link").symlink_to(lake.path / "tables")
    inspect = ["inspect", lake.path, "x", "--model", tiny.MODEL_NAME, "--sae", SAE, "--html"]
    for path in (lake.path / "out", lake.path / "tables" / "out", tmp_path / "link" / "out"):
        for call in (
            ["export", lake.path, "delphi", path, "--layer", 3],
            ["sql", lake.path, "SELECT 1", "--output", path],
            ["sql", lake.path, "--describe", "--output", path],
            ["sql", lake.path, "--init", path],
            [*inspect, path],
        ):
            assert f"it is in the lake at {lake.path.resolve()}" in told(capsys, *call)
    assert "it is in the lake" in told(
        capsys, "sql", lake.path, "SELECT 1", "--output", lake.path / "lake.json", "--overwrite"
    )
    assert files(lake.path) == before
    assert main(["sql", str(lake.path), "SELECT 1", "--output", f"{lake.path}-out"]) == 0


def test_a_page_is_not_overwritten_unasked(lake, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("mine")
    call = ["inspect", lake.path, "x", "--model", tiny.MODEL_NAME, "--sae", SAE, "--no-keep"]
    assert "is there already; give --overwrite" in told(capsys, *call, "--html", page)
    assert page.read_text() == "mine"
    assert "--overwrite was asked for without --html" in told(capsys, *call, "--overwrite")
    assert main([*map(str, call), "--html", str(page), "--overwrite"]) == 0
    assert page.read_text().startswith("<!doctype html>")


def test_an_empty_name_is_none(lake, tmp_path, capsys, monkeypatch):
    with pytest.raises(SaeNotFoundError, match="an SAE named '' was asked for; that is no name"):
        lake.top_contexts(1, sae="")
    for sae in ({"sae": ""}, {"sae": [SAE, ""]}):
        with pytest.raises(SaeNotFoundError, match="that is no name"):
            lake.compare("position < 3", "position > 3", **sae)
    a = scopelake.TokenSet("position < 3", model="")
    with pytest.raises(SaeNotFoundError, match="SAEs of model '' were asked for"):
        lake.compare(a, "position > 3")
    assert "that is no name" in told(capsys, "top", lake.path, 1, "--sae", "")
    monkeypatch.chdir(tmp_path)
    for call in (["create", ""], ["info", ""]):
        assert "a lake at '' was asked for; that is no path" in told(capsys, *call)
    assert os.listdir() == []
    assert "it is empty" in refused(lake.ingest, "code", model=tiny.MODEL_NAME, saes="")
    assert "it is empty" in refused(lake.ingest, "code", model="", saes=SAE)
    assert "names no file" in refused(lake.append_corpus, "code", "")


def test_what_is_no_path_is_refused(lake, tmp_path):
    before = lake.snapshot
    for wrong in (5, [5]):
        assert "give a path, or a list" in refused(lake.add_labels, wrong, layer=3)
        assert "5" in refused(lake.add_neighbors, wrong)
        assert "give a path, a" in refused(lake.append_corpus, "code", wrong).replace(", or", ", a")
    assert "path 5 " in refused(lake.export, "delphi", 5, layer=3)
    assert "format 5 " in refused(lake.export, 5, tmp_path / "out", layer=3)
    for door in (scopelake.open, scopelake.create, scopelake.verify):
        assert "a lake at 5 was asked for" in refused(door, 5)
    assert "tokenizer 5 " in refused(lake.add_corpus, "x", tmp_path, tokenizer=5)
    assert lake.snapshot == before


def test_one_feature_is_exported_as_a_number(lake, tmp_path):
    for number in (44, np.int64(44)):
        done = lake.export("delphi", tmp_path / type(number).__name__, layer=3, features=number)
        assert done.n_features == 1
    assert "feature '4" in refused(lake.export, "delphi", tmp_path / "x", layer=3, features="44")
    assert done._repr_html_().startswith("delphi: 1 feature of ")


def test_the_shell_speaks_of_its_own_words(lake, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("feature,label\n1,loops\n")
    call = ["label", lake.path, tmp_path / "labels.csv", "--layer", 3, "--name", "z\x1b[31mb"]
    assert main(list(map(str, call))) == 0
    assert "source z\u241b[31mb;" in capsys.readouterr().out
    added = lake.add_labels(tmp_path / "labels.csv", layer=3, name="<i>")
    assert "source &lt;i&gt;;" in added._repr_html_()
    assert "\x1b" not in told(capsys, "compare", lake.path, "--a", "\x1b[31m", "--b", "position")
    assert "set b was not given; give --b\n" in told(
        capsys, "compare", lake.path, "--a", "position < 20"
    )
    assert "set a and set b were not given; give --a and --b\n" in told(
        capsys, "compare", lake.path
    )
    assert "a (position < 9) and b (all tokens) were" in refused(
        lake.compare, "position < 9", scopelake.TokenSet()
    )
    assert "give 1 or more, or all\n" in told(capsys, "search", lake.path, "import", "-k", 0)
    assert "or None for all" in refused(lake.search, "import", k=0)
    assert main(["search", str(lake.path), "import", "-k", "all"]) == 0
    with pytest.raises(SystemExit):
        main(["top", str(lake.path), "1", "--window", "foo"])
    said = capsys.readouterr().err
    assert "argument --window: 'foo' is no whole number and not all" in said
