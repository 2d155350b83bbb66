"""Memory: what it may be, how shards are cut to fit, and that they do."""

import json
import re
import subprocess
import sys
import threading

import psutil
import pytest
import torch

import scopelake
from scopelake import tiny
from scopelake.errors import InvalidArgumentError, NotIngestedError, TooLittleMemoryError
from scopelake.ingest.budget import COMMITS, Budget, Needs, parse_memory, writers
from scopelake.ingest.find_coders import find_coders

SAE = "resid_post_all/layer_3_width_1024_l0_small"
OTHER = "resid_post_all/layer_1_width_1024_l0_small"
BEFORE_OUTPUT = "attn_out_all/layer_3_width_512_l0_small"
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}] or 'naïve'\n\n" for i in range(120))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("8GB", 8 * 10**9), ("500MiB", 500 * 2**20), ("1.5 gb", 1_500_000_000), ("64k", 64_000),
     ("123", 123), (7, 7), ("2TiB", 2 * 2**40)],
)  # fmt: skip
def test_sizes_are_read(given, expected):
    assert parse_memory(given) == expected


def test_by_default_it_is_a_share_of_the_machine():
    assert 0 < parse_memory(None) == parse_memory("auto") < psutil.virtual_memory().total


@pytest.mark.parametrize(
    "given", ["", "lots", "8XB", "-1GB", 0, -5, 1.5, True, "0GB", "8 G B", "9" * 400]
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="give one such as 8GB"):
        parse_memory(given)


def budget_of(left, coders, batch_tokens=1000, needs=None):
    budget = Budget(psutil.Process().memory_info().rss + COMMITS + left, coders, batch_tokens)
    budget.begin(needs or Needs(token=1000, dense=0, longest=10))
    return budget


@pytest.fixture(scope="module")
def coders():
    return find_coders([f"{tiny.coders_path()}/resid_post_all/*"])


def test_more_firings_and_less_memory_make_smaller_pieces(coders):
    ample, tight = budget_of(2 * 10**9, coders), budget_of(10**8, coders)
    for budget in (ample, tight):
        unknown = budget.piece_tokens()  # nothing has fired yet: half of all features may
        for coder in coders:
            budget.measured(coder.name, firings=40_000, tokens=1000)
        assert unknown < budget.piece_tokens()
    assert tight.piece_tokens() < ample.piece_tokens()
    before = ample.piece_tokens()
    ample.measured(coders[0].name, firings=400_000, tokens=1000)
    assert ample.piece_tokens() < before
    ample.measured(coders[0].name, firings=1, tokens=1000)  # a quiet piece promises nothing
    assert ample.piece_tokens() < before


def test_memory_that_holds_no_context_is_refused_with_what_is_needed(coders):
    with pytest.raises(InvalidArgumentError, match=r"needs .* GB; give .*GB, fewer coders"):
        budget_of(10**6, coders, needs=Needs(token=10**6, dense=0, longest=128))
    with pytest.raises(InvalidArgumentError, match="dense activations of 2 shards 2 GB"):
        budget_of(10**9, coders, needs=Needs(token=1, dense=10**9, longest=1))


def make_lake(folder, **options):
    (folder / "text.txt").write_text(TEXT)
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("text", folder / "text.txt", tokenizer=tiny.MODEL_NAME, **options)
    return lake


def test_a_shard_in_pieces_gives_what_a_whole_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(Budget, "piece_tokens", lambda self: 100)
    found = {}
    for name in ("pieces", "whole"):
        (tmp_path / name).mkdir()
        lake = make_lake(tmp_path / name, context_length=64, shard_contexts=20)
        lake.ingest("text", model=tiny.MODEL_NAME, saes=[tiny.coders_path() / SAE],
                    dense=["resid_post/3"], device="cpu")  # fmt: skip
        monkeypatch.undo()
        files = lake.sql("SELECT shard, count(*) AS n FROM files WHERE kind = 'codes' GROUP BY 1")
        order = "ORDER BY context, position, feature"
        found[name] = (
            files["n"].to_pylist(),
            lake.sql(f"SELECT * FROM codes {order}"),
            lake.sql(f"SELECT * FROM postings {order}").select(["feature", "context", "kind"]),
            lake.sql("SELECT * FROM features ORDER BY feature"),
            lake.top_contexts(5, layer=3).table,
            lake.activations(3)[:].tobytes(),
        )
        assert lake.verify().broken == ()
    pieces, whole = found["pieces"], found["whole"]
    assert min(pieces[0]) > 1
    assert set(whole[0]) == {1}
    assert pieces[1:] == whole[1:]


def test_an_ingest_in_pieces_that_was_stopped_is_not_called_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(Budget, "piece_tokens", lambda self: 100)
    lake, stop = make_lake(tmp_path, context_length=64, shard_contexts=8), threading.Event()
    asked = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / SAE], "device": "cpu"}
    done = lake.ingest("text", stop=stop, progress=lambda now: now.n_bytes and stop.set(), **asked)
    assert done.n_left
    n_files = lake.sql("SELECT count(*) AS n FROM files WHERE kind = 'codes'")["n"][0].as_py()
    assert n_files >= done.n_shards  # as many as there would be without pieces
    assert "incomplete" in lake.top_contexts(5, layer=3).note
    last = lake.sql("SELECT max(context) AS n FROM contexts")["n"][0].as_py()
    with pytest.raises(NotIngestedError, match="was not ingested yet"):
        lake.features_at(last)


def test_the_unembedding_counts_though_it_comes_last(coders):
    budget = budget_of(10**9, coders)
    features = 1200 * sum(coder.width for coder in coders)
    budget.check_readout(taken=10**15)
    budget.expect_readout(5 * 10**8)
    fits = budget.limit - COMMITS - features - 5 * 10**8
    budget.check_readout(taken=fits)
    with pytest.raises(TooLittleMemoryError, match=r"the unembedding, .* 0.5 GB in the end; give"):
        budget.check_readout(taken=fits + 1)


def test_a_refusal_names_the_one_figure_that_is_enough_for_all(coders):
    def refusal(readout, limit):
        budget = Budget(limit, coders, 16_384)
        budget.expect_readout(readout)
        with pytest.raises(TooLittleMemoryError) as refused:
            budget.begin(Needs(token=1000, dense=0, longest=10), taken=0)
        return float(re.search(r"give ([0-9.]+)GB", str(refused.value))[1])

    small, large = refusal(0, 10**6), refusal(5 * 10**9, 10**6)
    assert large > small
    budget = Budget(int(large * 1e9), coders, 16_384)
    budget.expect_readout(5 * 10**9)
    budget.begin(Needs(token=1000, dense=0, longest=10), taken=0)
    budget.check_readout(taken=0)


def test_processes_that_write_are_counted():
    budget, needs = Budget(10**9, [], 16_384), Needs(token=1000, dense=0, longest=10)
    budget.begin(needs, taken=0, beside=320_000_000)
    with pytest.raises(TooLittleMemoryError, match=r"take 1\.2 GB"):
        budget.begin(needs, taken=0, beside=1_050_000_000)


@pytest.mark.parametrize("is_stored", [False, True], ids=["live", "stored"])
def test_an_ingest_whose_unembedding_does_not_fit_is_refused(tmp_path, monkeypatch, is_stored):
    lake = make_lake(tmp_path, context_length=64, shard_contexts=20)
    asked = {"saes": [tiny.coders_path() / SAE], "device": "cpu"}
    if is_stored:
        lake.ingest("text", model=tiny.MODEL_NAME, dense=["resid_post/3"],
                    saes=[tiny.coders_path() / OTHER], device="cpu")  # fmt: skip
        asked["unembedding"] = tiny.MODEL_NAME
    act = lake.encode if is_stored else lake.ingest
    before = lake.sql("SELECT * FROM snapshots").to_pylist()
    # Shards fit beside the process; the tokens that features promote need 142 MB.
    monkeypatch.setattr("scopelake.ingest.budget.taken_memory", lambda: 10**9)
    memory = 10**9 + COMMITS + 80_000_000
    with pytest.raises(TooLittleMemoryError, match="unembedding"):
        act("text", model=tiny.MODEL_NAME, memory=memory, **asked)
    lake.refresh()
    assert lake.sql("SELECT * FROM snapshots").to_pylist() == before
    # Where none is read, there is nothing to hold.
    found = lake.ingest("text", model=tiny.MODEL_NAME, memory=memory, device="cpu",
                        saes=[tiny.coders_path() / BEFORE_OUTPUT])  # fmt: skip
    assert found.firings


RUN = """
import json, sys
from pathlib import Path
from scopelake import cli

status = cli.main(["ingest", sys.argv[1], "text", "--model", "scopelake/gemma-3-tiny", "--device",
                   "cpu", "--sae", sys.argv[2], "--memory", sys.argv[3]])
peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
print(json.dumps({"peak": int(peak.split()[1]) * 1024, "status": status}))
"""


def test_fifty_coders_stay_within_the_memory_they_are_given(tmp_path, write_coder):
    """The shard's firings alone would take four times what is left beside the process."""
    generator = torch.Generator().manual_seed(1)
    for i in range(50):
        threshold = torch.full((512,), 1e-3)
        w_enc = torch.randn(128, 512, generator=generator)
        folder = f"layer_{i % 6}_width_512_l0_small_seed_{i}"
        tensors = {"w_enc": w_enc, "threshold": threshold}
        write_coder(tmp_path / "coders", folder=folder, width=512, **tensors)
    lake = make_lake(tmp_path, context_length=64, shard_contexts=40)
    given = 1000 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(lake.path),
         str(tmp_path / "coders/gemma-scope-2-test/resid_post_all/*"), str(given)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    lake.refresh()
    shards = lake.sql(
        "SELECT shard, count(*) / 50 AS pieces, sum(n_rows) AS firings FROM files "
        "WHERE kind = 'codes' GROUP BY shard ORDER BY shard"
    )
    print(found["peak"], done.stderr, shards.to_pylist())
    assert found["peak"] <= given
    assert min(shards["pieces"].to_pylist()) > 1
    assert lake.sql("SELECT count(DISTINCT sae) AS n FROM codes")["n"].to_pylist() == [50]


@pytest.mark.parametrize("cores", [1, 2, 16, 64])
@pytest.mark.parametrize("n_coders", [0, 1, 9, 50])
@pytest.mark.parametrize("spare", [0, 5_000_000, 100_000_000, 10**11])
def test_statistics_take_the_cores_and_no_more_than_is_left(monkeypatch, cores, n_coders, spare):
    budget = Budget(10**12, [], 1024, cores)
    monkeypatch.setattr(budget, "spare", lambda: spare)
    share = budget.statistics(n_coders)
    total = share.coders * share.threads
    assert 1 <= share.coders <= max(1, min(n_coders, writers(cores)))
    assert share.n_bytes >= 8_000_000
    if spare > 10**10:
        assert cores <= total < cores + share.coders
    # A thread more, at most, for each coder that is at work.
    assert total == 1 or (total - share.coders + 1) * share.n_bytes <= 0.6 * spare
