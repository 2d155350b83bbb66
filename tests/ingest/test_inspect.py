"""A prompt that is inspected is a corpus of one context, ingested as any other."""

import json

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import CoderMismatchError, CorpusSourceError, InvalidArgumentError

SAES = ["gemma-scope-2-tiny/resid_post_all/layer_3_width_1024_l0_small",
        "gemma-scope-2-tiny/resid_post_all/layer_5_width_1024_l0_small"]  # fmt: skip
TEXT = "def depth(lake):\n    return lake.depth\n"
QUESTION = [{"role": "user", "content": "What is a list?"}]


@pytest.fixture
def lake(tmp_path):
    return scopelake.create(tmp_path / "lake")


def inspect(lake, prompt, **options):
    return lake.inspect(prompt, model=tiny.MODEL_NAME, saes=SAES, device="cpu", **options)


def test_a_text_fires_as_the_same_text_in_a_corpus_does(lake, tmp_path):
    found = inspect(lake, TEXT, k=None)
    assert found.corpus == "inspection-1"
    (tmp_path / "a.txt").write_text(TEXT)
    lake.add_corpus("file", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME)
    lake.ingest("file", model=tiny.MODEL_NAME, saes=SAES, device="cpu")
    assert found.table.num_rows > 100
    assert lake.features_at(0, corpus="file").table.equals(found.table)
    text = lake.sql("SELECT string_agg(token, '' ORDER BY position) AS t FROM tokens "
                    "WHERE corpus = 'inspection-1' AND kind <> 'bos'")  # fmt: skip
    assert text["t"][0].as_py() == TEXT


def test_every_inspection_is_kept_and_k_is_the_most_for_each_sae_and_token(lake):
    first, second = inspect(lake, TEXT, k=2), inspect(lake, TEXT, k=2)
    assert (first.corpus, second.corpus) == ("inspection-1", "inspection-2")
    assert first.table.equals(second.table)
    counts = first.table.group_by(["sae", "position"]).aggregate([("feature", "count")])
    assert max(counts["feature_count"].to_pylist()) == 2


def test_the_model_answers_a_chat(lake):
    found = inspect(lake, QUESTION, generate=6)
    rows = lake.sql("SELECT position, role, kind FROM tokens WHERE corpus = ? ORDER BY position",
                    [found.corpus]).to_pylist()  # fmt: skip
    generated = [r["position"] for r in rows if r["kind"] == "generated"]
    assert 1 <= len(generated) <= 6
    assert generated[-1] == len(rows) - 1
    assert set(generated) <= set(found.table["position"].to_pylist())
    again = inspect(lake, QUESTION, generate=6)
    assert again.table.equals(found.table)


def test_what_cannot_be_inspected_leaves_the_lake_as_it_was(lake, tmp_path, write_coder):
    for prompt, error, says in (
        ("", CorpusSourceError, "empty prompt"),
        ([], CorpusSourceError, "no messages"),
        ("a\ud800", CorpusSourceError, "the prompt .* its text has half of a surrogate pair"),
        ([{"role": "bot", "content": "x"}], CorpusSourceError, "of role 'bot'"),
        ([{"role": "user"}], CorpusSourceError, "without text 'role' and 'content'"),
        ("x " * 40_000, InvalidArgumentError, "shorten it"),
    ):
        with pytest.raises(error, match=says):
            inspect(lake, prompt)
    with pytest.raises(InvalidArgumentError, match="k=0"):
        inspect(lake, TEXT, k=0)
    with pytest.raises(InvalidArgumentError, match="replies belong to chats"):
        inspect(lake, TEXT, generate=3)
    wide = write_coder(tmp_path, d_in=64)
    with pytest.raises(CoderMismatchError):
        lake.inspect(TEXT, model=tiny.MODEL_NAME, saes=[wide], device="cpu")
    assert lake.snapshot == 1


def test_the_command_line(lake, capsys):
    options = ["--model", tiny.MODEL_NAME, "--sae", SAES[0], "-k", "1"]
    assert main(["inspect", str(lake.path), TEXT, *options]) == 0
    assert "context 0 of inspection-1" in capsys.readouterr().out
    assert main(["inspect", str(lake.path), "What?", "--chat", "--generate", "2", "--json",
                 *options]) == 0  # fmt: skip
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "<start_of_turn>" in {row["token"] for row in rows}
