"""A feature's card through the front door: what is kept in part, tokens' texts, the shell."""

import json
import warnings

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    AmbiguousSaeError,
    FeatureNotFoundError,
    InvalidArgumentError,
    PartialWarning,
    QueryError,
)

SAE = "gemma-scope-2-tiny/resid_post_all/layer_3_width_1024_l0_small"
N_DOCUMENTS = 40
ASKED = {"model": tiny.MODEL_NAME, "saes": [SAE], "device": "cpu"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A corpus of text whose firings are all kept, one packed, one of chats, two kept in part."""
    folder = tmp_path_factory.mktemp("feature")
    texts = [f"def depth_{i}(lake):\n    return lake[{i}] * {i}\n" for i in range(N_DOCUMENTS)]
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "model", "content": "A lake."}]}
        for text in texts
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    lake = scopelake.create(folder / "lake")
    cut = {"tokenizer": tiny.MODEL_NAME, "context_length": 48, "shard_contexts": 16}
    keeps = {"whole": "all", "packed": "all", "sampled": "sample:0.4", "peaked": "peaks"}
    for name, keep in keeps.items():
        lake.add_corpus(name, folder / "text.jsonl", packing=name == "packed", **cut)
        lake.ingest(name, keep=keep, **ASKED)
    lake.add_corpus("chats", folder / "chats.jsonl", chat=True, **cut)
    lake.ingest("chats", **ASKED)
    return lake


@pytest.fixture(scope="module")
def busiest(lake):
    found = lake.sql("SELECT feature FROM features WHERE corpus = 'whole' ORDER BY firings DESC")
    return found["feature"].to_pylist()[:3]


def firings(lake, feature, corpora):
    query = "SELECT * FROM postings WHERE feature = ? AND kind <> 'bos'"
    with warnings.catch_warnings(action="ignore", category=PartialWarning):
        rows = lake.sql(query, [feature]).to_pylist()
    return [r for r in rows if r["corpus"] in corpora]


@pytest.mark.parametrize("corpora", [["whole"], ["packed"], ["chats"]])
def test_densities_divide_by_the_tokens_that_there_are(lake, busiest, corpora):
    for feature in busiest:
        card = lake.feature(feature, sae=SAE, corpus=corpora[0])
        mine = firings(lake, feature, corpora)
        tokens = lake.sql(
            "SELECT position, role, kind FROM tokens WHERE corpus = ? AND kind <> 'bos'", corpora
        ).to_pylist()
        assert card.total.firings == len(mine)
        assert card.total.n_tokens == len(tokens)
        for row in card.by_position.to_pylist():
            there = [t for t in tokens if t["position"] == row["position"]]
            here = [r for r in mine if r["position"] == row["position"]]
            assert (row["firings"], row["n_tokens"]) == (len(here), len(there))
        for row in card.by_role.to_pylist():
            of = [t for t in tokens if (t["role"], t["kind"]) == (row["role"], row["kind"])]
            assert row["n_tokens"] == len(of)
        assert sum(r["firings"] for r in card.by_role.to_pylist()) == len(mine)
        assert card.total.p50 == pytest.approx(np.quantile([r["activation"] for r in mine], 0.5))


def test_what_is_kept_in_part_counts_in_all_and_is_said(lake, busiest):
    card = lake.feature(busiest[0], sae=SAE)
    assert card.corpora == ("chats", "packed", "peaked", "sampled", "whole")
    rows = {r["corpus"]: r for r in card.by_corpus.to_pylist()}
    assert rows["peaked"]["firings"] == rows["sampled"]["firings"] == rows["whole"]["firings"]
    assert card.total.firings == sum(r["firings"] for r in rows.values())
    assert card.total.p50 is None
    assert rows["whole"]["quantile_error"] == 0
    assert rows["peaked"]["quantile_error"] == 2.0**-6
    assert rows["peaked"]["p90"] == pytest.approx(rows["whole"]["p90"], rel=2.0**-6)
    assert "peaks only" in rows["peaked"]["state"]
    wholly = len(firings(lake, busiest[0], ["whole", "packed", "chats"]))
    assert sum(r["firings"] for r in card.by_role.to_pylist()) == wholly
    notes = " ".join(card.notes)
    assert "corpus sampled: peaks only" in notes
    assert "quantiles in all are not known" in notes
    assert "roles and positions are of the corpora" in notes


def test_what_fires_with_it_is_not_guessed(lake, busiest):
    assert lake.coactive(busiest[0], sae=SAE).corpora == ("chats", "packed", "whole")
    with pytest.raises(QueryError, match="all firings"):
        lake.coactive(busiest[0], sae=SAE, corpus="peaked")
    card = lake.feature(busiest[0], sae=SAE, corpus="peaked", coactive=True)
    assert card.coactive is None
    assert any("what fires with it is not known" in note for note in card.notes)
    assert card.by_role.num_rows == 0
    assert card.to_text()


def test_an_appended_corpus_is_incomplete_until_it_is_ingested(lake, busiest, tmp_path):
    import shutil

    copy = scopelake.open(shutil.copytree(lake.path, tmp_path / "lake"))
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "new", "text": "def f():\n    return"}))
    copy.append_corpus("whole", tmp_path / "more.jsonl")
    card = copy.feature(busiest[0], sae=SAE, corpus="whole")
    assert card.total is None
    assert "corpus whole: incomplete, 3 of 4 shards ingested" in card.notes
    (row,) = card.by_corpus.to_pylist()
    assert row["firings"] == len(firings(lake, busiest[0], ["whole"]))
    assert row["density"] is None


def test_promoted_tokens_have_their_texts(lake, busiest, monkeypatch):
    from transformers import AutoTokenizer

    from scopelake import named

    card = lake.feature(busiest[0], sae=SAE)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny.model_path()))
    rows = card.tokens.to_pylist()
    assert [r["rank"] for r in rows] == [*range(10), *range(10)]
    for row in rows:
        piece = tokenizer.convert_ids_to_tokens(row["token_id"])
        assert row["token"] == piece.replace("▁", " ")
    stored = lake.sql(
        "SELECT top_tokens, bottom_logits, decoder_norm, encoder_norm FROM features WHERE "
        "feature = ? AND corpus = 'whole'", [busiest[0]],
    ).to_pylist()[0]  # fmt: skip
    assert [r["token_id"] for r in rows if r["side"] == "top"] == stored["top_tokens"]
    assert [r["logit"] for r in rows if r["side"] == "bottom"] == stored["bottom_logits"]
    assert (card.decoder_norm, card.encoder_norm) == (
        stored["decoder_norm"], stored["encoder_norm"],
    )  # fmt: skip
    # Another tokenizer of that name is not believed, and nothing is fetched.
    assert named.decode(tiny.MODEL_NAME, "xxh3:0", [5]) is None
    assert named.decode("nobody/nothing", "xxh3:0", [5]) is None
    assert named.decode("notes of mine", "xxh3:0", [5]) is None
    monkeypatch.setattr(named, "_vocabulary", lambda tokenizer: None)
    lake.refresh()
    card = lake.feature(busiest[0], sae=SAE)
    assert set(card.tokens["token"].to_pylist()) == {None}
    assert f"#{rows[0]['token_id']} " in card.to_text()
    assert any("tokens are shown as ids" in note for note in card.notes)


def test_the_shell_says_the_same(lake, busiest, capsys):
    path, feature = str(lake.path), str(busiest[0])
    lake.refresh()
    assert main(["feature", path, feature, "--layer", "3", "--coactive", "-k", "4"]) == 0
    card = lake.feature(busiest[0], layer=3, k=4, coactive=True)
    assert capsys.readouterr().out == f"{card}\n"
    assert main(["feature", path, feature, "--sae", SAE, "--json", "--corpus", "whole"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["total"]["firings"] == len(firings(lake, busiest[0], ["whole"]))
    assert main(["feature", path, feature, "--explain"]) == 0
    assert capsys.readouterr().out == lake.explain_feature(busiest[0], layer=3)


def test_bad_questions_are_refused_on_one_line(lake, capsys):
    path = str(lake.path)
    for arguments, said in (
        (["feature", path, "1024", "--layer", "3"], "features 0 to 1023"),
        (["feature", path, "1", "--layer", "9"], "at layers 3"),
        (["feature", path, "1", "-k", "0"], "-k 0 was asked for"),
        (["add-neighbors", path, "--sae", SAE, "-k", "0"], "-k 0 neighbors were asked for"),
        (["add-neighbors", path, "--sae", "nowhere"], "there is no such folder"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(FeatureNotFoundError):
        lake.coactive(-1, sae=SAE)
    with pytest.raises(InvalidArgumentError, match="give a whole number"):
        lake.feature(1.5, sae=SAE)
    with pytest.raises(InvalidArgumentError, match="sae 3 was asked for"):
        lake.explain_feature(1, sae=3)


def test_neighbors_come_from_the_shell(lake, capsys, tmp_path):
    import shutil

    path = str(shutil.copytree(lake.path, tmp_path / "lake"))
    assert main(["add-neighbors", path, "--sae", SAE, "-k", "3", "--device", "cpu"]) == 0
    assert "1 pair of SAEs compared: 3,072 neighbors" in capsys.readouterr().out
    asked = ["add-neighbors", path, "--sae", SAE, "--other", SAE, "-k", "2", "--json"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["n_already"] == 1
    card = scopelake.open(path).feature(5, sae=SAE)
    assert card.neighbors["rank"].to_pylist() == [0, 1, 2]
    pinned = scopelake.open(path, scopelake.open(path).snapshot)
    with pytest.raises(InvalidArgumentError, match="read-only"):
        pinned.add_neighbors(SAE)


def test_a_layer_with_two_saes_is_refused(lake, tmp_path):
    import shutil

    copy = scopelake.open(shutil.copytree(lake.path, tmp_path / "lake"))
    other = "gemma-scope-2-tiny/mlp_out_all/layer_3_width_512_l0_small"
    copy.ingest("whole", model=tiny.MODEL_NAME, saes=other, device="cpu")
    with pytest.raises(AmbiguousSaeError, match="name one"):
        copy.feature(1, layer=3)
    found = copy.coactive(1, sae=SAE, other_sae="mlp_out_all/layer_3_width_512_l0_small")
    assert found.other_sae == other
    assert found.corpora == ("whole",)
    assert f"corpus chats is left out: {other} was not run there" in found.note
