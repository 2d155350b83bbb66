"""`scopelake plan` in a shell: a table or JSON; what is wrong is one line and changes nothing."""

import json
import os
import subprocess
import sys

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main

MODEL = tiny.MODEL_NAME
SAE = f"{tiny.CODERS_REPO}/resid_post_all/layer_1_width_1024_l0_small"
PUBLISHED = "google/gemma-scope-2-1b-it/resid_post_all/*_width_16k_l0_small"


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan-verb")
    (root / "text.txt").write_text("import os\n\ndef main(argv):\n    return os.environ\n" * 40)
    path = str(root / "lake")
    assert main(["create", path]) == 0
    assert main(["add-corpus", path, "code", str(root / "text.txt"), "--tokenizer", MODEL,
                 "--context-length", "64", "--shard-contexts", "3"]) == 0  # fmt: skip
    return path


def plan(capsys, *arguments):
    capsys.readouterr()
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_a_plan_is_a_table_or_json(capsys, lake):
    asked = (lake, "code", "--model", MODEL, "--sae", SAE, "--device", "cpu")
    text = plan(capsys, *asked)
    for word in ("tokens", "FLOP", "guessed", "stated", "postings", "memory, host", "all of it"):
        assert word in text
    found = json.loads(plan(capsys, *asked, "--json", "--tokens-per-second", "100"))
    assert found["tokens"] == scopelake.open(lake).info().corpora[0].tokens
    assert found["seconds"] == {"value": found["tokens"] / 100, "unit": "s", "basis": "stated"}
    assert found["compared"] == []


def test_a_pilot_in_a_shell_compares(capsys, lake):
    before = scopelake.open(lake).snapshot
    found = json.loads(plan(capsys, lake, "code", "--model", MODEL, "--sae", SAE, "--pilot",
                            "--device", "cpu", "--json"))  # fmt: skip
    assert {"throughput", "firings a token", "codes"} <= {c["what"] for c in found["compared"]}
    assert found["firings"]["basis"] == "measured"
    assert scopelake.open(lake).snapshot == before


def test_what_a_billion_tokens_would_cost(capsys):
    found = json.loads(plan(capsys, "--tokens", "1e9", "--model", "google/gemma-3-1b-it", "--sae",
                            PUBLISHED, "--device", "h100", "--json"))  # fmt: skip
    assert found["tokens"] == 10**9
    assert len(found["coders"]) == 26
    assert found["encode_flops"]["value"] == 10**9 * 26 * 2 * 1152 * 16384
    # The first shard is cut in two: before anything has fired half of all features may.
    assert found["tables"][0]["objects"] == 26 * (-(-(10**9) // (1024 * 256)) + 1)
    assert found == json.loads(json.dumps(
        scopelake.plan(1e9, model="google/gemma-3-1b-it", saes=PUBLISHED, device="h100").to_dict()
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{lake}"], "give LAKE and CORPUS, or --tokens N alone"),
        (["{lake}", "code", "--tokens", "9"], "give LAKE and CORPUS, or --tokens N alone"),
        (["{lake}", "code", "--context-length", "9"], "the corpus has its own"),
        (["--tokens", "1e6", "--pilot"], "it runs a shard of one"),
        (["--tokens", "0"], "a plan is of 1 to"),
        (["--tokens", "nan"], "a plan is of 1 to"),
        (["--tokens", "9", "--context-length", "-1"], "a plan with --context-length -1"),
        (["--tokens", "9", "--context-length", "0"], "a plan with --context-length 0"),
        (["--tokens", "9", "--shard-contexts", "0"], "a plan with --shard-contexts 0"),
        (["{lake}", "code", "--shard-contexts", "0"], "the corpus has its own"),
        (["--tokens", "9", "--keep", "some"], "give 'all', 'peaks' or 'sample:<share>'"),
        (["--tokens", "9", "--memory", "lots"], "give one such as 8GB"),
        (["--tokens", "9", "--device", "cpu", "--device-map", "auto"], "give one of them"),
        (["--tokens", "9", "--tokens-per-second", "-1"], "a rate is above 0"),
        (["--tokens", "9", "--dtype", "float16"], "choose 'bfloat16' or 'float32'"),
        (["--tokens", "9", "--dense", "resid_post/77"], "has layers 0 to 5"),
        (["{lake}", "none"], "the lake has code"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, lake, arguments, message):
    given = [a.format(lake=lake) for a in arguments]
    before = scopelake.open(lake).snapshot
    capsys.readouterr()
    assert main(["plan", *given, "--model", MODEL, "--sae", SAE]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert scopelake.open(lake).snapshot == before


def test_what_could_have_been_named_is_said(capsys):
    asked = ["plan", "--tokens", "1e6", "--sae", PUBLISHED]
    assert main([*asked, "--model", "google/gemma-3-1b-it", "--device", "x100"]) == 2
    assert "choose 'cpu', 'h100' or 'auto'" in capsys.readouterr().err
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "scopelake", *asked, "--model", "google/gemma-3-5b-it"],
        env=offline, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "published models are known without it: google/gemma-3-270m-pt, " in done.stderr
