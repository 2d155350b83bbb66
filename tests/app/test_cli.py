"""The command line: bad input is one line on stderr, exit status 2, and the lake as it was."""

import json
import os

import pytest
from safetensors.torch import load_file, save_file

from scopelake import tiny
from scopelake.cli import main

MODEL = tiny.MODEL_NAME
REPO = tiny.CODERS_REPO
SAE = "resid_post_all/layer_3_width_1024_l0_small"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    (root / "text.txt").write_text("import os\n\ndef main(argv):\n    return os.environ\n" * 40)
    path = str(root / "lake")
    assert main(["create", path]) == 0
    assert main(["add-corpus", path, "code", str(root / "text.txt"), "--tokenizer", MODEL,
                 "--context-length", "64", "--shard-contexts", "3"]) == 0  # fmt: skip
    assert main(["ingest", path, "code", "--model", MODEL, "--sae", f"{REPO}/{SAE}",
                 "--dense", "resid_post/3"]) == 0  # fmt: skip
    return path


def tree(path):
    return sorted(
        (os.path.join(folder, name), os.path.getsize(os.path.join(folder, name)))
        for folder, _, names in os.walk(path)
        for name in names
    )


def refuse(capsys, lake, arguments):
    before = tree(lake)
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert tree(lake) == before
    return captured.err


def test_every_read_verb_answers(capsys, lake):
    capsys.readouterr()
    feature = max(
        (row for row in _json(capsys, ["features-at", lake, "0", "5", "--json"])),
        key=lambda row: row["activation"],
    )["feature"]
    top = _json(capsys, ["top", lake, str(feature), "--layer", "3", "-k", "2", "--json"])
    assert [row["rank"] for row in top] == list(range(len(top)))
    assert top
    assert top[0]["activation"] == max(top[0]["activations"])
    (count,) = _json(capsys, ["sql", lake, "SELECT count(*) AS n FROM codes", "--json"])
    assert main(["info", lake, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["firings"] == count["n"] > 0
    for verb in (["info", lake], ["top", lake, str(feature)], ["features-at", lake, "0"]):
        assert main(verb) == 0
        assert capsys.readouterr().out
    assert main(["sql", lake, "--init"]) == 0
    assert "CREATE OR REPLACE VIEW main.tokens" in capsys.readouterr().out


def _json(capsys, arguments):
    assert main(arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["top", "{lake}", "1024", "--layer", "3"], "features 0 to 1023"),
        (["top", "{lake}", "-1"], "features 0 to 1023"),
        (["top", "{lake}", "1", "--layer", "9"], "at layers 3"),
        (["top", "{lake}", "1", "--sae", "nope"], SAE),
        (["top", "{lake}", "1", "-k", "0"], "give 1 or more"),
        (["top", "{lake}", "1", "-k", "-3"], "give 1 or more"),
        (["top", "{lake}", "1", "--window", "-1"], "give 0 or more"),
        (["top", "{lake}", "1", "--where", "1); DROP TABLE x"], "not one SQL expression"),
        (["top", "{lake}", "1", "--snapshot", "99"], "snapshot 99 was asked for"),
        (["features-at", "{lake}", "999"], "it has contexts 0 to"),
        (["features-at", "{lake}", "0", "64"], "it has positions 0 to 63"),
        (["features-at", "{lake}", "0", "--corpus", "nope"], "the lake has code"),
        (["sql", "{lake}", "DELETE FROM codes"], "use SELECT"),
        (["sql", "{lake}", "SELECT 1; SELECT 2"], "2 statements"),
        (["sql", "{lake}", "SELECT * FROM read_csv('/etc/passwd')"], "'read_csv'"),
        (["sql", "{lake}", "SELECT * FROM read_csv('x')"], "feature_card, features_at, "),
        (["sql", "{lake}", "SELECT 1", "--memory", "lots"], "give one such as 8GB"),
        (["sample", "{lake}", "1", "--layer", "3", "-k", "2"], "-k 2 contexts of --bands 5"),
        (["sql", "{lake}", "SELEC 1"], "does not parse"),
        (["ingest", "{lake}", "nope", "--model", MODEL, "--sae", REPO], "the lake has code"),
        (["ingest", "{lake}", "code", "--model", "/nowhere", "--sae", f"{REPO}/{SAE}"],
         "no such folder"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", "/nowhere"], "no such folder"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/{SAE}",
          "--dense", "resid/3"], "resid_post/3"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/{SAE}",
          "--dense", "resid_post/6"], "layers 0 to 5"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/{SAE}",
          "--model-name", "gemma-3-1b-it"], "scopelake/gemma-3-tiny"),
        (["add-corpus", "{lake}", "code", "{here}", "--tokenizer", MODEL], "choose another name"),
        (["add-corpus", "{lake}", "a b", "{here}", "--tokenizer", MODEL], "not usable"),
        (["add-corpus", "{lake}", "new", "/nowhere", "--tokenizer", MODEL], "no such file"),
        (["add-corpus", "{lake}", "new", "{here}", "--tokenizer", "/nowhere"], "no such folder"),
        (["add-corpus", "{lake}", "new", "{here}", "--tokenizer", MODEL, "--context-length", "1"],
         "give 2 or more"),
        (["add-corpus", "{lake}", "new", "{here}", "--tokenizer", MODEL, "--generate", "5"],
         "--generate 5 was asked for a corpus of texts; replies belong to chats; give --chat, or"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/nope/*"],
         f"SAE '{REPO}/nope/*' was asked for; there is no such folder; {REPO} has attn_out_all/"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/nope/*"],
         ", ... 9 more; choose among these"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", f"{REPO}/resid_post_all/x*"],
         "resid_post_all has layer_"),
        (["ingest", "{lake}", "nope", "--model", MODEL, "--sae", REPO], "add it with add-corpus"),
        (["ingest", "{lake}", "code", "--model", MODEL, "--sae", REPO, "--activation-bits", "0"],
         "--activation-bits 0 was asked for"),
        (["top", "{lake}", "1", "-k", "0", "--where", "k=1"], "-k 0 was asked for"),
        (["top", "{lake}", "1", "--where", "rolle = 'user'"], "token, role, turn, kind, document"),
        (["top", "{lake}", "1", "--where", "k=1 +"], "where 'k=1 +' was asked for"),
        (["create", "{lake}"], "a lake is there"),
        (["info", "/nowhere"], "/nowhere"),
        (["info", "/etc"], "/etc"),
        (["demo", "/etc"], "something else is there"),
        (["demo", "{lake}"], "corpora that are not the demo's (code)"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_changes_nothing(capsys, lake, arguments, message):
    filled = [a.format(lake=lake, here=__file__) for a in arguments]
    error = refuse(capsys, lake, filled)
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "empty.txt"),
        ("latin.txt", b"caf\xe9", "not valid UTF-8"),
        ("archive.txt", b"PK\x03\x04\x00", "character 4 is NUL"),
        ("bad.jsonl", b'{"text": "x"}\n{oops', "bad.jsonl:2"),
    ],
)
def test_a_bad_corpus_file_leaves_no_corpus(capsys, lake, tmp_path, name, data, message):
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / name).write_bytes(data)
    error = refuse(
        capsys, lake, ["add-corpus", lake, "new", str(tmp_path / "good.txt"),
                       str(tmp_path / name), "--tokenizer", MODEL],
    )  # fmt: skip
    assert message in error
    assert main(["sql", lake, "SELECT corpus FROM corpora", "--json"]) == 0
    assert capsys.readouterr().out == '{"corpus": "code"}\n'


def test_a_bad_file_after_many_good_ones_leaves_no_file(capsys, lake, tmp_path):
    # More documents than are tokenized at once, and more contexts than one file of the table has.
    good = json.dumps({"text": "word " * 100}) + "\n"
    (tmp_path / "a.jsonl").write_text(good * 80)
    (tmp_path / "b.jsonl").write_text("[]\n")
    error = refuse(
        capsys, lake, ["add-corpus", lake, "new", str(tmp_path / "a.jsonl"),
                       str(tmp_path / "b.jsonl"), "--tokenizer", MODEL, "--context-length", "2"],
    )  # fmt: skip
    assert "b.jsonl:1" in error


def test_a_decoder_that_was_rescaled_is_warned_of_in_one_line(capsys, lake, tmp_path):
    folder = tmp_path / REPO / "resid_post" / "layer_3_width_1024_l0_small"
    folder.mkdir(parents=True)
    tensors = load_file(tiny.coders_path() / SAE / "params.safetensors")
    tensors["w_dec"][:7] *= 3
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_name": MODEL}))
    assert main(["create", str(tmp_path / "lake")]) == 0
    (tmp_path / "a.txt").write_text("import os\n" * 9)
    assert main(["add-corpus", str(tmp_path / "lake"), "c", str(tmp_path / "a.txt"),
                 "--tokenizer", MODEL]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["ingest", str(tmp_path / "lake"), "c", "--model", MODEL, "--sae",
                 str(folder)]) == 0  # fmt: skip
    error = capsys.readouterr().err
    assert error.startswith("scopelake: warning: coder ")
    assert "7 of 1024 decoder rows whose norm is not 1 (3 to 3)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["top", "{lake}", "1", "--nope"], ["top", "{lake}", "x"], ["nope"], [], ["top"],
     ["ingest", "{lake}", "code", "--model", MODEL], ["top", "{lake}", "1", "--site", "x"]],
)  # fmt: skip
def test_a_malformed_command_is_one_line(capsys, lake, arguments):
    error = refuse(capsys, lake, [a.format(lake=lake) for a in arguments])
    assert error.startswith("scopelake")
    assert "--help" in error
    assert error.count("\n") == 1


def test_a_path_through_a_file_is_one_line(capsys, lake, tmp_path):
    (tmp_path / "file").write_text("x")
    error = refuse(capsys, lake, ["create", str(tmp_path / "file" / "lake")])
    assert "file" in error
    assert error.count("\n") == 1
