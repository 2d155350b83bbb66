"""Plans against what an ingest then does: the lake stays as it was, and the numbers are near."""

import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import (
    CoderFileError,
    CoderMismatchError,
    CorpusNotFoundError,
    InvalidArgumentError,
    TooLittleMemoryError,
)
from scopelake.ingest import coders, pilot
from scopelake.ingest.pilot import measured_profile
from scopelake.names import KIND_BOS

SAES = [
    f"{tiny.CODERS_REPO}/{name}"
    for name in (
        "resid_post_all/layer_1_width_1024_l0_small",
        "transcoder_all/layer_3_width_512_l0_small_affine",
        "attn_out_all/layer_3_width_512_l0_small",
    )
]
ASKED = {"model": tiny.MODEL_NAME, "device": "cpu", "dense": ["resid_post/3"]}
TABLES = ("codes", "postings", "peaks", "samples", "dense")


def tree(path):
    """Path and size of all files below a folder."""
    return {
        os.path.join(folder, name): os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    }


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    files, n_bytes = [], 0
    for path in tiny.stdlib_files(held_out=True):
        if n_bytes < 130_000:
            files.append(path)
            n_bytes += path.stat().st_size
    made = scopelake.create(folder / "lake")
    made.add_corpus(
        "code", files, tokenizer=tiny.MODEL_NAME, context_length=128, shard_contexts=100
    )
    return made


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    """The folder that temporary ones are made in: others' pilots use the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("scratch")
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def compared(lake, scratch):
    """The plan, the plan with a pilot, what was there before and what the ingest has made."""
    before, snapshot = tree(lake.path), lake.snapshot
    plain = lake.plan("code", saes=SAES, **ASKED)
    calls = []
    piloted = lake.plan("code", saes=SAES, pilot=True, progress=calls.append, **ASKED)
    assert tree(lake.path) == before
    lake.refresh()
    assert lake.snapshot == snapshot
    assert calls
    assert not list(scratch.glob("scopelake-pilot-*"))
    done = lake.ingest("code", saes=SAES, **ASKED)
    rows = lake.sql(
        "SELECT kind, sum(n_rows)::BIGINT AS rows, sum(n_bytes)::BIGINT AS bytes, count(*) AS n "
        "FROM files GROUP BY kind"
    ).to_pylist()
    made = {path: n for path, n in tree(lake.path).items() if path not in before}
    return plain, piloted, done, {row["kind"]: row for row in rows}, made


def test_a_pilot_foretells_what_is_stored(compared):
    _, plan, done, real, made = compared
    assert plan.tokens == done.tokens
    assert plan.n_shards == done.n_shards > 2
    assert plan.firings.value == pytest.approx(done.firings, rel=0.15)
    for table in TABLES:
        assert plan.table(table).n_bytes == pytest.approx(real[table]["bytes"], rel=0.15), table
        assert plan.table(table).objects == real[table]["n"]
    for table in TABLES[:-1]:
        assert plan.table(table).rows == pytest.approx(real[table]["rows"], rel=0.15), table
    assert plan.n_bytes == pytest.approx(sum(made.values()), rel=0.15)
    assert plan.n_objects == pytest.approx(len(made), rel=0.02)


def test_a_plan_without_a_pilot_is_near_too(compared):
    plan, _, done, real, made = compared
    assert plan.firings.value == pytest.approx(done.firings, rel=0.15)
    for table in TABLES:
        assert plan.table(table).n_bytes == pytest.approx(real[table]["bytes"], rel=0.15), table
    assert plan.n_bytes == pytest.approx(sum(made.values()), rel=0.15)
    assert plan.n_objects == pytest.approx(len(made), rel=0.02)


def test_the_catalogue_and_the_logs_are_foretold(compared, lake):
    plan, _, _, _, made = compared
    logs = {p: n for p, n in made.items() if "_delta_log" in p}
    entries = [n for p, n in logs.items() if p.endswith(".json")]
    assert plan.table("delta logs").objects == len(entries)
    assert plan.table("delta logs").n_bytes == pytest.approx(sum(entries), rel=0.15)
    assert plan.table("delta checkpoints").objects == len(logs) - len(entries)
    names = ("files", "snapshots", "runs", "saes", "models")
    rows = [p for p in made if any(f"/tables/{name}/" in p for name in names) and p not in logs]
    metadata = [p for p in made if p.endswith("zarr.json")]
    assert plan.table("catalogue").objects == len(rows) + len(metadata)


def test_a_pilot_says_how_far_off_each_guess_was(compared):
    plain, plan, *_ = compared
    found = {one.what: one for one in plan.compared}
    for what in ("throughput", "firings a token", "codes", "postings", "peaks", "dense"):
        assert found[what].ratio == pytest.approx(found[what].guess / found[what].measured)
    assert found["firings a token"].guess * plain.tokens == pytest.approx(plain.firings.value)
    assert plan.firings.basis == plan.tokens_per_second.basis == plan.bytes_basis == "measured"
    assert plain.firings.basis == "stated"
    assert plain.tokens_per_second.basis == plain.bytes_basis == "guessed"
    assert plain.compared == ()
    for word in ("the pilot", "guess", "measured", "ratio", "ran shard 0"):
        assert word in plan.to_text()


def test_what_the_lake_has_costs_nothing(compared, lake):
    assert lake.plan("code", saes=SAES, **ASKED).already_complete
    more = f"{tiny.CODERS_REPO}/mlp_out_all/*"
    plan = lake.plan("code", saes=[*SAES, more], **ASKED)
    by_name = {cost.sae: cost.firings for cost in plan.coders}
    assert sum(firings > 0 for firings in by_name.values()) == 1
    assert plan.table("dense").objects == 0
    assert plan.layers_run == 4
    assert "nothing to do" in lake.plan("code", saes=SAES, pilot=True, **ASKED).to_text()


def test_a_plan_reads_no_weights(lake, scratch, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(coders, "digest_files", refuse)
    monkeypatch.setattr(pilot, "load_model", refuse)
    more = f"{tiny.CODERS_REPO}/mlp_out_all/*"
    assert lake.plan("code", saes=more, **ASKED).tokens > 0
    with pytest.raises(AssertionError, match="weights were read"):
        lake.plan("code", saes=more, pilot=True, **ASKED)
    assert not list(scratch.glob("scopelake-pilot-*"))


def test_what_an_ingest_would_refuse_is_refused(lake):
    with pytest.raises(CorpusNotFoundError):
        lake.plan("nothing", saes=SAES, **ASKED)
    with pytest.raises(CoderMismatchError):
        lake.plan("code", model=tiny.MODEL_NAME, dense=["resid_post/6"])
    with pytest.raises(CoderFileError, match="nothing is fetched for that"):
        lake.plan("code", saes="somebody/coders/resid_post/layer_1_width_16k_l0_small", **ASKED)
    with pytest.raises(InvalidArgumentError, match="makes nothing"):
        lake.plan("code", model=tiny.MODEL_NAME)
    with pytest.raises(InvalidArgumentError, match="activation_bits"):
        lake.plan("code", saes=SAES, activation_bits=99, **ASKED)
    with pytest.raises(InvalidArgumentError, match="tokens_per_second"):
        lake.plan("code", saes=SAES, tokens_per_second=0, **ASKED)
    with pytest.raises(InvalidArgumentError, match="rates are assumed"):
        lake.plan(
            "code",
            saes=SAES[0],
            pilot=True,
            dtype="float32",
            **ASKED | {"device": "h100", "dense": ["mlp_in/2"]},
        )


def test_what_the_lake_keeps_otherwise_is_refused_as_an_ingest_would(compared, lake):
    for change in ({"keep": "peaks"}, {"activation_bits": 23}, {"dtype": "bfloat16"}):
        messages = []
        for act in (lake.plan, lake.ingest):
            with pytest.raises(CoderMismatchError, match="was asked for; .* is stored") as refused:
                act("code", saes=SAES, **ASKED | change)
            messages.append(str(refused.value))
        assert messages[0] == messages[1]


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    lines = [
        json.dumps({"id": f"d{i}", "text": path.read_text(encoding="utf-8")[:3000]})
        for i, path in enumerate(tiny.stdlib_files(held_out=True))
    ]
    folder = tmp_path_factory.mktemp("partly")
    (folder / "text.jsonl").write_text("\n".join(lines[:50]))
    made = scopelake.create(folder / "lake")
    made.add_corpus("code", folder / "text.jsonl", tokenizer=tiny.MODEL_NAME, context_length=128,
                    shard_contexts=100)  # fmt: skip
    return made


@pytest.mark.parametrize(("keep", "sae"), [("peaks", SAES[0]), ("sample:0.5", SAES[1])])
def test_what_is_not_kept_costs_nothing(partly, keep, sae):
    asked = ASKED | {"dense": [], "saes": sae, "keep": keep}
    plans = [partly.plan("code", pilot=pilot, **asked) for pilot in (False, True)]
    done = partly.ingest("code", **asked)
    name = plans[0].coders[0].sae
    rows = partly.sql(
        "SELECT kind, sum(n_rows)::BIGINT AS rows, sum(n_bytes)::BIGINT AS bytes, count(*) AS n "
        f"FROM files WHERE sae = '{name}' GROUP BY kind"
    ).to_pylist()
    real = {row["kind"]: row for row in rows}
    assert keep in plans[0].to_text()
    assert "bounds it" in plans[0].to_text()
    for plan in plans:
        assert plan.keep == keep
        assert plan.firings.value == pytest.approx(done.firings, rel=0.15)
        for table in ("codes", "postings", "peaks", "samples", "tallies"):
            assert plan.table(table).objects == real[table]["n"], table
        for table in ("peaks", "samples"):
            assert plan.table(table).n_bytes == pytest.approx(real[table]["bytes"], rel=0.3), table
        # Which documents are in the sample is a matter of chance.
        for table in ("codes", "postings"):
            assert plan.table(table).rows == pytest.approx(real[table]["rows"], rel=0.3), table
        # Guessed, with a pilot too.
        assert plan.table("tallies").n_bytes == pytest.approx(real["tallies"]["bytes"], rel=0.6)


RUN = """
import json, sys
from scopelake import cli
from scopelake.ingest.machine import peak_memory

status = cli.main(["ingest", *sys.argv[1:]])
print(json.dumps({"peak": peak_memory(), "status": status}))
"""


@pytest.mark.parametrize(
    ("change", "options"),
    [({}, []), ({"keep": "peaks"}, ["--keep", "peaks"]),
     ({"memory": "1GB"}, ["--memory", "1GB"])],
)  # fmt: skip
def test_no_more_memory_is_taken_than_was_foretold(tmp_path, change, options):
    (tmp_path / "text.txt").write_text("import os\n\ndef main(argv):\n    return argv\n" * 2000)
    made = scopelake.create(tmp_path / "lake")
    made.add_corpus("code", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=128,
                    shard_contexts=120)  # fmt: skip
    plan = made.plan("code", saes=SAES, **ASKED | change)
    foretold = sum(part.n_bytes for part in plan.host_memory)
    assert plan.misfits == ()
    assert plan.device_memory == ()
    assert foretold <= plan.memory
    asked = ["--model", tiny.MODEL_NAME, "--device", "cpu", "--dense", "resid_post/3", *options]
    asked += [a for sae in SAES for a in ("--sae", sae)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(made.path), "code", *asked],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    assert foretold / 2 < found["peak"] <= foretold


def test_too_little_memory_is_foretold_in_the_words_of_an_ingest(lake):
    asked = ASKED | {"memory": "100MB", "saes": f"{tiny.CODERS_REPO}/mlp_out_all/*"}
    (line,) = lake.plan("code", **asked).misfits
    with pytest.raises(TooLittleMemoryError) as refused:
        lake.ingest("code", **asked)
    assert _without_numbers(line) == f"the host's memory: {_without_numbers(str(refused.value))}"
    assert "memory of 100,000,000 bytes was asked for" in line
    with pytest.raises(TooLittleMemoryError):
        lake.plan("code", pilot=True, **asked)


def _without_numbers(text):
    return re.sub(r"[\d.]+(?=\s?GB)", "N", text)


def test_a_profile_counts_contexts_and_bands_without_bos():
    rows = [  # feature, context, activation, kind
        (0, 0, 1.0, 0),
        (0, 0, 1.5, 0),
        (0, 1, 4.0, 0),
        (2, 1, 1.0, KIND_BOS),
        (2, 2, 8.0, 0),
    ]
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    found = measured_profile(
        columns[0].astype(np.int32), columns[1].astype(np.int64), columns[2].astype(np.float32),
        columns[3].astype(np.int8), n_contexts=4, n_tokens=10, width=3,
    )  # fmt: skip
    assert found.contexts.tolist() == [2 / 4, 1 / 4]
    assert sorted(found.bands.tolist()) == [0.1, 0.1, 0.2]
