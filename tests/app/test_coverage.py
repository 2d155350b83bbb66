"""What was not ingested is not called silent: refused, or said in a note."""

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import CorpusNotFoundError, NotIngestedError

SAE = f"{tiny.CODERS_REPO}/resid_post_all/layer_3_width_1024_l0_small"
OTHER = f"{tiny.CODERS_REPO}/resid_post_all/layer_5_width_1024_l0_small"


class Killed(Exception):
    pass


def kill_after_first_commit(progress):
    if progress.n_bytes:
        raise Killed


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Three corpora: one ingested, one ingested in part, one not at all."""
    root = tmp_path_factory.mktemp("coverage")
    (root / "text.txt").write_text("import os\n\ndef main(argv):\n    return os.environ\n" * 40)
    lake = scopelake.create(root / "lake")
    for name in ("whole", "part", "bare"):
        lake.add_corpus(name, root / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                        shard_contexts=2)  # fmt: skip
    lake.ingest("whole", model=tiny.MODEL_NAME, saes=[SAE])
    with pytest.raises(Killed):
        lake.ingest("part", model=tiny.MODEL_NAME, saes=[SAE], progress=kill_after_first_commit)
    lake.refresh()
    return lake


@pytest.fixture(scope="module")
def feature(lake):
    return lake.features_at(0, 5, corpus="whole").table["feature"][0].as_py()


def test_an_sae_that_was_not_run_on_a_corpus_is_refused(lake, feature):
    for ask in (
        lambda: lake.top_contexts(feature, layer=3, corpus="bare"),
        lambda: lake.top_contexts(feature, layer=3, corpus="bare", where="true"),
        lambda: lake.features_at(0, corpus="bare", sae=SAE),
        lambda: lake.features_at(0, corpus="bare"),
    ):
        with pytest.raises(NotIngestedError, match=r"corpus 'bare'.*ingest .* first"):
            ask()
    with pytest.raises(CorpusNotFoundError, match="bare, part, whole"):
        lake.top_contexts(feature, layer=3, corpus="nope")


def test_the_command_line_refuses_in_one_line(lake, feature, capsys):
    assert main(["top", str(lake.path), str(feature), "--layer", "3", "--corpus", "bare"]) == 2
    assert main(["features-at", str(lake.path), "0", "--corpus", "bare"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 2


def test_a_part_is_answered_with_a_note(lake, feature):
    note = "corpus part: incomplete, 1 of 6 shards ingested"
    found = lake.top_contexts(feature, layer=3)
    assert found.note == note
    assert note in found.to_text()
    assert lake.top_contexts(feature, layer=3, corpus="whole").note == ""
    assert lake.top_contexts(feature, layer=3, corpus="part", where="false").to_text() == (
        f"feature {feature} of {SAE} is in nothing that is known ({note})"
    )


def test_a_context_that_was_not_reached_is_refused(lake):
    assert lake.features_at(1, corpus="part").table.num_rows
    for options in ({}, {"sae": SAE}):
        with pytest.raises(NotIngestedError, match="1 of 6 shards ingested"):
            lake.features_at(2, corpus="part", **options)


def test_what_others_lack_is_said_and_the_corpus_chooses_among_saes(lake, tmp_path):
    lake.ingest("bare", model=tiny.MODEL_NAME, saes=[OTHER])
    with pytest.raises(Killed):
        lake.ingest("bare", model=tiny.MODEL_NAME, saes=[SAE], progress=kill_after_first_commit)
    lake.refresh()
    found = lake.features_at(5, corpus="bare")
    assert found.note == "without 1 SAE whose ingest has not come to this context"
    assert set(found.table["sae"].to_pylist()) == {OTHER}
    assert lake.features_at(0, corpus="bare").note == ""
    assert lake.top_contexts(1, corpus="whole").sae == SAE
    assert lake.features_at(0, corpus="whole", sae="width_1024_l0_small").table.num_rows
