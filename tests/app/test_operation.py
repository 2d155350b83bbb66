"""Running an ingest: dry runs, Ctrl-C at a shard's end, logs, what runs say of themselves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

import scopelake
from scopelake import progress, tiny
from scopelake.cli import main
from scopelake.errors import CoderMismatchError, InvalidArgumentError
from scopelake.ingest.report import Progress

SAE = "resid_post_all/layer_1_width_1024_l0_small"
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(150))


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("text", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=8)  # fmt: skip
    return lake


def corpus_of(lake):
    (row,) = lake.sql("SELECT n_contexts, n_tokens FROM corpora").to_pylist()
    return row


def n_shards_of(lake):
    return -(-corpus_of(lake)["n_contexts"] // 8)


def arguments(lake, *more):
    return ["ingest", str(lake.path), "text", "--model", tiny.MODEL_NAME, "--device", "cpu",
            "--sae", str(tiny.coders_path() / SAE), *more]  # fmt: skip


def test_a_dry_run_checks_and_writes_nothing(lake, tmp_path, capsys):
    before = sorted(p for p in lake.path.rglob("*") if p.is_file())
    assert main(arguments(lake, "--dry-run")) == 0
    said = capsys.readouterr().out
    n_shards = n_shards_of(lake)
    assert f"{n_shards} shards are left, about {corpus_of(lake)['n_tokens']:,} tokens" in said
    assert sorted(p for p in lake.path.rglob("*") if p.is_file()) == before
    log = tmp_path / "log.jsonl"
    assert main(arguments(lake, "--dry-run", "--log", str(log))) == 0
    assert not log.exists()
    assert main(arguments(lake, "--dry-run", "--model-name", "other")) == 2  # another's coders
    assert main(arguments(lake)) == 0
    capsys.readouterr()
    assert main(arguments(lake, "--dry-run")) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_stop_ends_it_with_whole_shards_and_it_goes_on(lake, tmp_path):
    stop = threading.Event()

    def at_first_commit(now):
        if now.n_bytes:
            stop.set()

    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
    done = lake.ingest("text", stop=stop, progress=at_first_commit, **asked)
    assert 0 < done.n_left < done.n_shards
    assert done.tokens > 0
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["stopped"]
    assert lake.verify().broken == ()
    rest = lake.ingest("text", **asked)
    assert rest.n_shards == done.n_left
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["complete"]


INTERRUPTED = """
import os, signal, sys
from scopelake import progress
from scopelake.cli import main
from scopelake.errors import CoderMismatchError, InvalidArgumentError
signal.signal(signal.SIGINT, signal.default_int_handler)
plain, n_sent = progress.ingest_progress, [0]

class Show:
    def __init__(self, *given): pass
    def __enter__(self): return self.show
    def __exit__(self, *error): pass
    def show(self, now):
        if now.n_bytes and n_sent[0] < int(sys.argv[1]):
            n_sent[0] += 1
            os.kill(os.getpid(), signal.SIGINT)

progress.ingest_progress = Show
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("times", "says"),
    [(1, "shards left; the lake is whole"), (2, "interrupted; the lake is whole")],
)
def test_ctrl_c_stops_at_the_end_of_a_shard_and_a_second_one_at_once(lake, times, says):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(times), *arguments(lake)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "stopping once the shards that are begun are in the lake" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    lake.refresh()
    shards = lake.sql("SELECT count(*) AS n FROM files WHERE kind = 'codes'")["n"][0].as_py()
    assert 0 < shards < n_shards_of(lake)
    assert main(arguments(lake)) == 0
    lake.refresh()
    assert lake.verify().broken == ()
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["complete"]


def test_the_log_has_an_object_for_every_event(lake, tmp_path):
    log = tmp_path / "log.jsonl"
    assert main(arguments(lake, "--log", str(log), "--progress", "none")) == 0
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert said[0]["event"] == "ingest started"
    assert said[-1]["event"] == "ingest ended"
    assert said[-1]["state"] == "complete"
    shards = [s for e in said if e["event"] == "shard committed" for s in [e["shard"]]]
    assert sorted(shards) == list(range(said[0]["shards"]))
    lake.refresh()
    assert sum(e.get("firings", 0) for e in said[1:-1]) == lake.info().firings


@pytest.mark.parametrize(
    ("log", "says"),
    [("tables/x.jsonl", "only the lake's own files belong"), ("no/x.jsonl", "its folder is not")],
)
def test_a_log_that_has_no_place_is_refused(lake, tmp_path, log, says, capsys):
    folder = lake.path if log.startswith("tables") else tmp_path
    before = sorted(lake.path.rglob("*"))
    assert main(arguments(lake, "--log", str(folder / log))) == 2
    assert says in capsys.readouterr().err
    assert sorted(lake.path.rglob("*")) == before


def test_progress_that_cannot_be_called_is_refused_before_anything_is_written(lake):
    before = sorted(lake.path.rglob("*"))
    with pytest.raises(InvalidArgumentError, match="progress 'lines' .* give a function"):
        lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path()], progress="lines")
    assert sorted(lake.path.rglob("*")) == before


def test_a_run_says_what_it_was_made_of_and_where(lake):
    assert main(arguments(lake)) == 0
    lake.refresh()
    (row,) = lake.sql("SELECT config, tokens, seconds, device FROM runs").to_pylist()
    config = json.loads(row["config"])
    (sae,) = lake.sql("SELECT sae, digest FROM saes").to_pylist()
    (model,) = lake.sql("SELECT digest FROM models").to_pylist()
    (corpus,) = lake.sql("SELECT source_digest, tokenizer_digest FROM corpora").to_pylist()
    assert config["inputs"] == {
        "corpus": corpus["source_digest"], "tokenizer": corpus["tokenizer_digest"],
        "model": model["digest"], "saes": {sae["sae"]: sae["digest"]},
    }  # fmt: skip
    assert config["host"]["cpus"] == os.cpu_count()
    assert config["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=0.05)
    assert set(config["seconds"]) >= {"activations", "encode", "write", "commit"}


def test_progress_as_json_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with progress.ingest_progress("notes", "json") as show:
        show(Progress(tokens=500, n_tokens=1000, firings=9000, n_bytes=3_000_000, seconds=4.0))
    with progress.ingest_progress("notes", "none") as show:
        show(Progress(tokens=600, n_tokens=1000, firings=9000, n_bytes=3_000_000, seconds=4.0))
    said, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert said["corpus"] == last["corpus"] == "notes"
    assert said["tokens"] == 500
    assert said["seconds_left"] >= 0


def test_without_a_handler_an_interrupt_is_what_it_was():
    earlier = signal.getsignal(signal.SIGINT)
    from scopelake.cli.watching import _stopped_by_interrupt

    with _stopped_by_interrupt(threading.Event()):
        pass
    assert signal.getsignal(signal.SIGINT) is earlier


def test_too_little_memory_is_refused_before_anything_is_written(lake, capsys):
    before = sorted(p for p in lake.path.rglob("*") if p.is_file())
    for more in ((), ("--dry-run",)):
        assert main(arguments(lake, "--memory", "1MB", *more)) == 2
        assert "memory of 1,000,000 bytes was asked for; the model" in capsys.readouterr().err
    assert sorted(p for p in lake.path.rglob("*") if p.is_file()) == before


def test_what_fails_in_the_callers_progress_is_no_shards_fault(lake):
    def fail(now):
        raise ZeroDivisionError("of the caller")

    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
    with pytest.raises(ZeroDivisionError, match="of the caller"):
        lake.ingest("text", progress=fail, **asked)
    assert lake.ingest("text", **asked).failed == ()


def test_a_run_that_stored_nothing_does_not_say_what_is_kept(lake):
    stop = threading.Event()
    stop.set()
    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
    assert lake.ingest("text", keep="peaks", stop=stop, **asked).tokens == 0
    lake.ingest("text", **asked)
    lake.compact()
    assert "peaks only" not in lake.top_contexts(5, layer=1).note
    assert len(lake.features_at(0).table)
    with pytest.raises(CoderMismatchError, match="keep=peaks was asked for"):
        lake.ingest("text", keep="peaks", **asked)


def test_one_of_a_thing_is_not_spoken_of_as_many(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("import os\n")
    lake = str(tmp_path / "lake")
    assert main(["create", lake]) == 0
    assert main(["add-corpus", lake, "text", str(tmp_path / "text.txt"), "--tokenizer",
                 tiny.MODEL_NAME]) == 0  # fmt: skip
    asked = ["text", "--model", tiny.MODEL_NAME, "--sae", str(tiny.coders_path() / SAE)]
    for command in (["ingest", lake, *asked, "--dry-run"], ["plan", lake, *asked],
                    ["ingest", lake, *asked], ["info", lake]):  # fmt: skip
        assert main(command) == 0
    said = capsys.readouterr().out
    for words in ("1 document (", "1 context, ", "1 shard is left", ", 1 SAE, on "):
        assert words in said
    assert not re.search(r"(?<![\d.,])1 (shards|SAEs|contexts|documents|tokens|coders)\b", said)


def test_progress_summary_and_run_have_one_clock(lake):
    seen = []
    done = lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / SAE],
                       device="cpu", progress=seen.append)  # fmt: skip
    seconds = [now.seconds for now in seen]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    query = "SELECT seconds, epoch(finished_at - started_at) AS took FROM runs"
    (row,) = lake.sql(query).to_pylist()
    assert seconds[-1] == done.seconds == row["seconds"]
    assert row["took"] == pytest.approx(done.seconds, abs=1e-5)
    assert lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / SAE],
                       device="cpu").already_complete  # fmt: skip


def test_what_fails_in_the_last_call_of_progress_is_the_callers(lake):
    def fail(now):
        if scopelake.open(lake.path).sql("SELECT state FROM runs")["state"][0].as_py() != "running":
            raise KeyError("theirs")

    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
    with pytest.raises(KeyError, match="theirs"):
        lake.ingest("text", progress=fail, **asked)
    assert lake.ingest("text", **asked).already_complete
