"""The verbs that make corpora, as they are typed."""

import gzip
import json
import shutil

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main


@pytest.fixture
def lake(tmp_path):
    scopelake.create(tmp_path / "lake")
    records = [{"body": "def depth(lake):\n    return 1\n" * 4, "id": str(i // 2 * 2 + i % 2)}
               for i in range(4)]  # fmt: skip
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode())
    )
    return str(tmp_path / "lake")


def add(lake, source, *options):
    return main(["add-corpus", lake, "text", source, "--tokenizer", tiny.MODEL_NAME,
                 "--context-length", "16", *options])  # fmt: skip


def test_every_option_comes_through(lake, tmp_path, capsys):
    assert add(lake, f"{tmp_path}/*.jsonl.gz", "--text-column", "body", "--bos", "document",
               "--stride", "8", "--duplicates", "drop", "--shard-contexts", "3") == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "1 document (1 longer than a context, split), 3 duplicates (dropped), " in out
    row = scopelake.open(lake).sql("SELECT * FROM corpora").to_pylist()[0]
    assert (row["bos"], row["stride"], row["duplicates"], row["n_bos"]) == (
        "document",
        8,
        "drop",
        1,
    )
    (tmp_path / "b.txt").write_text("def more(lake): ...\n")
    assert main(["append-corpus", lake, "text", str(tmp_path / "b.txt")]) == 0
    assert "appended to corpus text: 1 document" in capsys.readouterr().out
    assert scopelake.open(lake).sql("SELECT n_documents AS n FROM corpora")["n"][0].as_py() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", "99"], "--stride 99 was asked for; a context of 16 tokens has room for 15"),
        (["--stride", "9", "--packing"], "--stride 9 was asked for with packing"),
        (["--text-column", "text"], "a.jsonl.gz:1 was asked for its 'text'; it has body, id; give "
                                    "every record a 'text', or name another with --text-column"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_it_is_typed(lake, tmp_path, capsys, options, message):
    assert add(lake, str(tmp_path / "a.jsonl.gz"), *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert scopelake.open(lake).snapshot == 1


def test_appending_with_another_setting_is_refused(lake, tmp_path, capsys):
    assert add(lake, str(tmp_path / "a.jsonl.gz"), "--text-column", "body", "--packing") == 0
    (tmp_path / "b.txt").write_text("x\n")
    capsys.readouterr()
    made = "; corpus 'text' was made "
    for options, message in (
        (["--context-length", "32"], f"--context-length 32 was asked for{made}with "
                                     "--context-length 16"),
        (["--bos", "none"], f"--bos none was asked for{made}with --bos each"),
        (["--stride", "8"], f"--stride 8 was asked for{made}without --stride, and all of a corpus "
                            "is; leave --stride out, or make another corpus"),
        (["--chat"], f"--chat was asked for{made}without --chat"),
    ):  # fmt: skip
        command = ["append-corpus", lake, "text", str(tmp_path / "b.txt"), *options]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "None" not in error
    assert main(["append-corpus", lake, "no", str(tmp_path / "b.txt")]) == 2
    assert scopelake.open(lake).snapshot == 2


def test_a_wrong_tokenizer_names_both(lake, tmp_path, capsys):
    assert add(lake, str(tmp_path / "a.jsonl.gz"), "--text-column", "body") == 0
    (tmp_path / "b.txt").write_text("x\n")
    other = tmp_path / "other"
    shutil.copytree(tiny.model_path(), other)
    said = json.loads((other / "tokenizer.json").read_text())
    said["model"]["merges"] = said["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(said))
    capsys.readouterr()
    command = ["append-corpus", lake, "text", str(tmp_path / "b.txt")]
    assert main([*command, "--tokenizer", str(other)]) == 2
    error = capsys.readouterr().err
    assert "--tokenizer other was asked for, itself " in error
    assert f"was made with --tokenizer {tiny.MODEL_NAME}, itself " in error
    assert error.count("\n") == 1
    assert main([*command, "--packing"]) == 2
    assert "--packing was asked for; corpus 'text' was made without --packing" in (
        capsys.readouterr().err
    )
