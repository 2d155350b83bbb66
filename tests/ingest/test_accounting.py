"""At its end an ingest knows of each shard: in the lake, set aside, or left by who stopped it."""

import itertools
import threading
from dataclasses import replace

import pytest
from distributed import Client, LocalCluster

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import LostShardError
from scopelake.ingest import crews, run_here, run_there
from scopelake.ingest.budget import Budget
from scopelake.ingest.worker import Worker

SAES = ["resid_post_all/layer_1_width_1024_l0_small", "mlp_out_all/layer_3_width_512_l0_small"]
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(60))
ASKED = {"model": tiny.MODEL_NAME, "saes": [tiny.coders_path() / sae for sae in SAES],
         "device": "cpu", "dense": ["resid_post/2"]}  # fmt: skip


@pytest.fixture
def lake(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    made = scopelake.create(tmp_path / "lake")
    made.add_corpus("text", tmp_path / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=8)  # fmt: skip
    return made


def committed(lake):
    lake.refresh()
    found = lake.sql("SELECT kind, sae, shard FROM files WHERE kind IN ('codes', 'dense')")
    return {(row["sae"], row["shard"]) for row in found.to_pylist()}


def states(lake):
    return lake.sql("SELECT state FROM runs")["state"].to_pylist()


def check_lost_then_made(lake, lost, says):
    """Ingest while something loses shards, then again; `lost` are (sae or None, shard)."""
    with pytest.raises(LostShardError, match=says):
        lake.ingest("text", **ASKED)
    n = -(-lake.sql("SELECT n_contexts FROM corpora")["n_contexts"][0].as_py() // 8)
    assert n > 4
    names = [f"{tiny.CODERS_REPO}/{sae}" for sae in SAES]
    assert committed(lake) == {(sae, i) for sae in (*names, None) for i in range(n)} - lost
    assert states(lake) == ["interrupted"]
    return n


def check_resumed(lake, monkeypatch, n):
    monkeypatch.undo()
    done = lake.ingest("text", **ASKED)
    assert (done.failed, done.n_left) == ((), 0)
    assert len(committed(lake)) == 3 * n
    assert states(lake) == ["complete"]


def whole_shard(i):
    return {(sae, i) for sae in (*(f"{tiny.CODERS_REPO}/{sae}" for sae in SAES), None)}


def test_a_crew_that_drops_a_shard_is_found_out(lake, monkeypatch):
    run = crews.run_here

    def dropping(worker, work):
        work.ledger.next()
        run(worker, work)

    monkeypatch.setattr(crews, "run_here", dropping)
    n = check_lost_then_made(lake, whole_shard(0), r"of 1 of them \(the first is 0\)")
    check_resumed(lake, monkeypatch, n)


def test_a_crew_that_ends_early_is_found_out(lake, monkeypatch):
    def early(worker, work):
        files = worker.make(work.next())
        work.commit([files])
        work.ledger.done(1)

    monkeypatch.setattr(crews, "run_here", early)
    lost = set().union(*(whole_shard(i) for i in range(1, 100)))
    n = check_lost_then_made(lake, lost, r"\(the first is 1\)")
    check_resumed(lake, monkeypatch, n)


@pytest.mark.parametrize("table", ["codes", "dense"])
def test_a_commit_that_leaves_out_a_coder_or_a_site_is_found_out(lake, monkeypatch, table):
    settle = run_here._commit
    sae = f"{tiny.CODERS_REPO}/{SAES[1]}" if table == "codes" else None

    def without(files):
        lost = [r for r in files.receipts if r.sae == sae]
        # A worker that never was told of the coder does not count its firings either.
        n = sum(r.n_rows for r in lost if r.table == "codes")
        kept = tuple(r for r in files.receipts if r not in lost)
        return replace(files, receipts=kept, firings=files.firings - n)

    def losing(made, worker, work):
        kept = [without(f) if f.shard.index == 2 else f for f in made]
        settle(kept, worker, work)

    monkeypatch.setattr(run_here, "_commit", losing)
    what = SAES[1] if sae else "resid_post/2"
    n = check_lost_then_made(lake, {(sae, 2)}, rf"of 1 of them \(the first is 2\) .*{what}")
    check_resumed(lake, monkeypatch, n)


@pytest.mark.parametrize("table", ["codes", "postings"])
def test_a_piece_of_a_shard_that_is_lost_is_found_out(lake, monkeypatch, table):
    write, n_pieces = Worker._write, itertools.count()

    def losing(self, shard, *rest):
        receipts = write(self, shard, *rest)
        if shard.index != 1 or next(n_pieces) != 1:
            return receipts
        return [r for r in receipts if r.table != table]

    monkeypatch.setattr(Budget, "piece_tokens", lambda self: 100)
    monkeypatch.setattr(Worker, "_write", losing)
    n = check_lost_then_made(
        lake, set().union(*(whole_shard(i) for i in range(1, 100))), rf"shard 1 .* of {table} have"
    )
    assert next(n_pieces) > 2
    check_resumed(lake, monkeypatch, n)


def test_whole_shards_are_committed_beside_one_that_is_not(lake, monkeypatch):
    def together(worker, work):
        first, second = (worker.make(work.next()) for _ in range(2))
        kept = [r for r in second.receipts if r.table != "postings"]
        work.commit([replace(second, receipts=tuple(kept)), first])

    monkeypatch.setattr(crews, "run_here", together)
    with pytest.raises(LostShardError, match=r"shard 1 .* of postings have 0; nothing of it was"):
        lake.ingest("text", **ASKED)
    assert committed(lake) == whole_shard(0)


def test_where_not_all_is_kept_both_orders_still_have_the_same(lake, monkeypatch):
    write = Worker._write

    def losing(self, *rest):
        receipts = write(self, *rest)
        return [r for r in receipts if r.table != "postings" or r.sae == receipts[0].sae]

    monkeypatch.setattr(Worker, "_write", losing)
    with pytest.raises(LostShardError, match="of postings have"):
        lake.ingest("text", keep="sample:0.999", **ASKED)
    monkeypatch.undo()
    assert lake.ingest("text", keep="sample:0.999", **ASKED).n_left == 0


def test_what_is_left_by_a_stop_is_not_lost(lake):
    stop = threading.Event()
    done = lake.ingest("text", **ASKED, progress=lambda _: stop.set(), stop=stop)
    assert done.n_left > 0
    lake.refresh()
    assert states(lake) == ["stopped"]


def test_the_command_line_says_so_in_one_line(lake, monkeypatch, capsys):
    run = crews.run_here

    def dropping(worker, work):
        work.ledger.next()
        run(worker, work)

    monkeypatch.setattr(crews, "run_here", dropping)
    asked = ["ingest", str(lake.path), "text", "--model", tiny.MODEL_NAME, "--device", "cpu"]
    for sae in ASKED["saes"]:
        asked += ["--sae", str(sae)]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "neither in the lake nor set aside; ingest again" in said
    assert "Traceback" not in said


def test_a_result_that_a_cluster_loses_is_found_out(lake, monkeypatch):
    settle = run_there._settle
    lost = []

    def losing(batch, cluster, work):
        kept = []
        for one in batch:
            if one[1].index == 1 and not lost:
                lost.append(one)
            else:
                kept.append(one)
        settle(kept, cluster, work)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None,
                     host="127.0.0.1") as made,
        Client(made) as client,
    ):  # fmt: skip
        monkeypatch.setattr(run_there, "_settle", losing)
        with pytest.raises(LostShardError, match=r"of 1 of them \(the first is 1\)"):
            lake.ingest("text", **ASKED, scheduler=client)
        assert not {(sae, i) for sae, i in committed(lake) if i == 1 and sae}
        monkeypatch.undo()
        done = lake.ingest("text", **ASKED, scheduler=client)
    assert done.failed == ()
    lake.refresh()
    assert states(lake) == ["complete"]
