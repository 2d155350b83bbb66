"""Exports through the front door: real firings, appended and packed corpora, the shell."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import InvalidArgumentError, QueryError

SAE = "gemma-scope-2-tiny/resid_post_all/layer_3_width_1024_l0_small"
LENGTH = 48


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A corpus to which was appended, one of packed chats, one kept in part."""
    folder = tmp_path_factory.mktemp("export")
    texts = [f"def depth_{i}(lake):\n    return lake[{i}] * {i}  # é日本🙂\n" for i in range(24)]

    def write(name, rows):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
        return folder / name

    lake = scopelake.create(folder / "lake")
    cut = {"tokenizer": tiny.MODEL_NAME, "context_length": LENGTH, "shard_contexts": 16}
    asked = {"model": tiny.MODEL_NAME, "saes": [SAE], "device": "cpu"}
    first = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    more = [{"id": f"e{i}", "text": text * 3} for i, text in enumerate(texts[:5])]
    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "model", "content": "A lake."}]}
        for text in texts
    ]
    lake.add_corpus("grown", write("first.jsonl", first), **cut)
    lake.append_corpus("grown", write("more.jsonl", more))
    lake.add_corpus("chats", write("chats.jsonl", chats), chat=True, packing=True, **cut)
    lake.add_corpus("peaked", write("again.jsonl", first), **cut)
    for corpus, keep in (("grown", "all"), ("chats", "all"), ("peaked", "peaks")):
        lake.ingest(corpus, keep=keep, **asked)
    lake.compact()
    return lake


def rows_of(lake, table, corpus):
    """Rows of a corpus straight from the files that the log of the table names."""
    import deltalake

    found = deltalake.DeltaTable(f"{lake.path}/tables/{table}").to_pyarrow_table().to_pylist()
    return [row for row in found if row["corpus"] == corpus]


@pytest.mark.parametrize("corpus", ["grown", "chats"])
def test_every_firing_comes_back_by_its_address(lake, tmp_path, corpus):
    done = lake.export("delphi", tmp_path / "out", layer=3, corpus=corpus)
    listing = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    context_of = {row["row"]: row["context"] for row in listing}
    oracle = {
        (r["feature"], r["context"], r["position"]): r["activation"]
        for r in rows_of(lake, "codes", corpus)
    }
    found = {}
    for path in (tmp_path / "out" / "latents").rglob("*.safetensors"):
        split, first = load_file(path), int(path.stem.split("_")[0])
        assert split["activations"].dtype == np.float16
        for (row, position, feature), value in zip(
            split["locations"].tolist(), split["activations"].tolist(), strict=True
        ):
            found[first + feature, context_of[row], position] = value
    # Ten bits of mantissa are kept by default, as many as float16 has.
    assert found == oracle
    assert done.n_firings == len(oracle)
    tokens = split["tokens"]
    for context in rows_of(lake, "contexts", corpus):
        row = next(r for r, c in context_of.items() if c == context["context"])
        assert tokens[row][: context["n_tokens"]].tolist() == context["token_ids"]
    numbers = [row["context"] for row in listing]
    assert numbers == sorted(numbers)
    assert (corpus == "chats") or numbers != list(range(len(numbers)))  # appended behind a gap


@pytest.mark.parametrize("corpus", ["grown", "chats"])
def test_dashboards_show_the_lakes_own_tokens(lake, tmp_path, corpus):
    busiest = lake.sql(
        "SELECT feature FROM features WHERE corpus = ? ORDER BY firings DESC LIMIT 3", [corpus]
    )["feature"].to_pylist()
    lake.export("neuronpedia", tmp_path / "out", layer=3, corpus=corpus, features=busiest, k=4)
    batch = json.loads((tmp_path / "out" / "batch-0.json").read_text())
    assert [f["feature_index"] for f in batch["features"]] == sorted(busiest)
    for found in batch["features"]:
        feature = found["feature_index"]
        top = lake.top_contexts(feature, sae=SAE, corpus=corpus, k=4, window=32).table.to_pylist()
        assert [(a["tokens"], a["values"]) for a in found["activations"]] == [
            (row["tokens"], row["activations"]) for row in top
        ]
        card = lake.feature(feature, sae=SAE, corpus=corpus)
        promoted = card.tokens.to_pylist()
        assert found["pos_str"] == [r["token"] for r in promoted if r["side"] == "top"]
        assert found["neg_values"] == [r["logit"] for r in promoted if r["side"] == "bottom"]
        assert found["frac_nonzero"] == pytest.approx(card.total.density)
    skipped = json.loads((tmp_path / "out" / "skipped_indexes.json").read_text())
    assert sorted(skipped["skipped_indexes"] + busiest) == list(range(1024))


def test_the_readme_of_feature_files_runs(lake, tmp_path, monkeypatch):
    lake.export("circuit-tracer", tmp_path / "out", layer=3, corpus="grown", k=1)
    monkeypatch.chdir(tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert (names["shown"]["index"], names["shown"]["transcoder_id"]) == (0, SAE)


def test_what_is_not_kept_whole_is_refused(lake, tmp_path):
    with pytest.raises(QueryError, match="not all of its firings are known there .peaks only"):
        lake.export("delphi", tmp_path / "out", layer=3, corpus="peaked")
    with pytest.raises(InvalidArgumentError, match="chats, grown, peaked"):
        lake.export("delphi", tmp_path / "out", layer=3)
    with pytest.raises(InvalidArgumentError, match="formats are"):
        lake.export("csv", tmp_path / "out", layer=3, corpus="grown")
    with pytest.raises(InvalidArgumentError, match="k '3' was asked for"):
        lake.export("neuronpedia", tmp_path / "out", layer=3, corpus="grown", k="3")
    assert list(tmp_path.iterdir()) == []


def test_the_shell_exports(lake, tmp_path, capsys):
    asked = ["--layer", "3", "--corpus", "grown"]
    out = tmp_path / "out"
    some = ["--feature", "0-3", "--feature", "44", "-k", "all", "--window", "all"]
    assert main(["export", str(lake.path), "neuronpedia", str(out), *asked, *some]) == 0
    assert "neuronpedia: 5 features of gemma-scope-2-tiny" in capsys.readouterr().out
    assert main(["export", str(lake.path), "neuronpedia", str(out), *asked]) == 2
    assert "it is there already" in capsys.readouterr().err
    other = str(tmp_path / "other")
    command = ["export", str(lake.path), "delphi", other, *asked, "--n-splits", "2", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["format"], told["sae"]) == (other, "delphi", SAE)
    assert len(list((tmp_path / "other" / "latents").rglob("*.safetensors"))) == 2
    assert main(["export", str(lake.path), "delphi", f"{other}2", *asked, "-k", "3"]) == 2
    assert "scopelake: -k 3 was asked for of an export as delphi" in capsys.readouterr().err
    for wrong, message in (
        (["--feature", "9-3"], "'9-3' is no feature and no range"),
        (["-k", "some"], "'some' is no number and not all"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", str(lake.path), "neuronpedia", f"{other}2", *asked, *wrong])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
