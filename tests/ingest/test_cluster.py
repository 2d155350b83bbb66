"""Ingest on a dask cluster of real processes: same lake, whatever is killed; poison set aside."""

import os
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from distributed import Client, LocalCluster
from safetensors.torch import load_file, save_file

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import ClusterError, InvalidArgumentError, ShardWarning

SAES = ["resid_post_all/layer_1_width_1024_l0_small", "mlp_out_all/layer_3_width_512_l0_small"]
TEXT = "".join(f"def depth_{i}(lake):\n    return lake[{i}]\n\n" for i in range(150))
ASKED = {"model": tiny.MODEL_NAME, "dense": ["resid_post/3"], "device": "cpu"}


def make_lake(folder, text=TEXT):
    folder.mkdir()
    (folder / "text.txt").write_text(text)
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("text", folder / "text.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                    shard_contexts=8)  # fmt: skip
    return lake


def coders():
    return [tiny.coders_path() / sae for sae in SAES]


def answers(lake):
    lake.refresh()
    saes = lake.sql("SELECT DISTINCT sae FROM features ORDER BY sae")["sae"].to_pylist()
    return (
        lake.sql("SELECT * FROM codes ORDER BY sae, context, position, feature"),
        lake.sql("SELECT * FROM features ORDER BY sae, feature"),
        [lake.top_contexts(7, sae=sae, k=300).table for sae in saes],
        lake.activations(3)[:].tobytes(),
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    lake = make_lake(tmp_path_factory.mktemp("here") / "lake")
    with one_thread():
        lake.ingest("text", saes=coders(), **ASKED)
    return answers(lake)


@contextmanager
def one_thread():
    """As workers have: with other numbers of threads sums round apart on some processors."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@pytest.fixture
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                      host="127.0.0.1") as made:  # fmt: skip
        yield made


def test_the_lake_is_the_same_also_when_a_worker_is_killed(tmp_path, cluster, expected):
    lake = make_lake(tmp_path / "there")
    victim = next(iter(cluster.workers.values())).pid
    killed = threading.Event()

    def kill(now):
        if now.n_bytes and not killed.is_set():
            killed.set()
            os.kill(victim, signal.SIGKILL)

    done = lake.ingest("text", saes=coders(), scheduler=cluster.scheduler_address, progress=kill,
                       **ASKED)  # fmt: skip
    assert killed.is_set()
    assert done.failed == ()
    assert answers(lake) == expected
    assert lake.verify().broken == ()
    again = lake.ingest("text", saes=coders(), scheduler=cluster.scheduler_address, **ASKED)
    assert again.already_complete


def test_a_client_does_as_well_and_codes_come_from_what_is_stored(tmp_path, cluster, expected):
    lake = make_lake(tmp_path / "there")
    with Client(cluster) as client:
        lake.ingest("text", saes=[], scheduler=client, **ASKED)
        lake.ingest("text", saes=[coders()[0]], scheduler=client, evaluate=True, **ASKED)
        live = lake.sql("SELECT * FROM evaluations")
        assert live["n_tokens"][0].as_py() > 0
        stored = "resid_post_all/layer_3_width_1024_l0_small"
        lake.encode("text", saes=[tiny.coders_path() / stored], scheduler=client, device="cpu")
        assert client.status == "running"
    here = make_lake(tmp_path / "here")
    here.ingest("text", saes=[], **ASKED)
    here.encode("text", saes=[tiny.coders_path() / stored], device="cpu")
    query = f"SELECT * FROM codes WHERE sae LIKE '%{stored}' ORDER BY context, position, feature"
    assert lake.sql(query) == here.sql(query)


def test_a_scheduler_that_is_gone_ends_it_and_the_next_ingest_goes_on(
    tmp_path, expected, monkeypatch
):
    monkeypatch.setattr("scopelake.ingest.distribute._WAIT", 1)
    lake = make_lake(tmp_path / "there")
    made = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None,
                        host="127.0.0.1")  # fmt: skip
    gone = threading.Event()

    def end(now):
        if now.n_bytes and not gone.is_set():
            gone.set()
            made.close()

    with (
        made,
        Client(made.scheduler_address, timeout=2) as client,
        pytest.raises(ClusterError, match="the lake is whole"),
    ):
        lake.ingest("text", saes=coders(), scheduler=client, progress=end, **ASKED)
    with one_thread():
        done = lake.ingest("text", saes=coders(), **ASKED)
    assert done.n_shards > 0
    assert answers(lake) == expected


@pytest.fixture
def poisoned(tmp_path):
    """A model to which the token of 'zebra' is not a number, and a text with it in one shard."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.model_path(), folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    from scopelake.ingest.tokens import Tokenizer

    tokenizer = Tokenizer.load(folder, "x")
    plain = {i for t in tokenizer.encode_texts([TEXT]) for i in t.token_ids.tolist()}
    odd = next(i for t in tokenizer.encode_texts(["zebra"]) for i in t.token_ids.tolist()
               if i not in plain)  # fmt: skip
    key = next(k for k in tensors if "embed_tokens" in k)
    tensors[key][odd] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    lake = make_lake(tmp_path / "lake", TEXT[:2000] + "zebra" + TEXT[2000:])
    return lake, folder


@pytest.mark.parametrize("scheduler", [None, "local:1"])
def test_poison_is_set_aside_and_named_and_the_rest_completes(poisoned, scheduler):
    lake, folder = poisoned
    asked = {**ASKED, "model": folder, "model_name": tiny.MODEL_NAME}
    with pytest.warns(ShardWarning, match=r"1 of \d+ shards was set aside: shard \d+ \(contexts"):
        done = lake.ingest("text", saes=coders(), scheduler=scheduler, **asked)
    (failed,) = done.failed
    assert failed.tries == 3
    assert "not finite" in failed.error or "NaN" in failed.error
    shards = lake.sql("SELECT DISTINCT shard FROM files WHERE kind = 'codes'")["shard"].to_pylist()
    assert sorted([*shards, failed.index]) == list(range(done.n_shards))
    assert lake.sql("SELECT state FROM runs")["state"].to_pylist() == ["incomplete"]
    # Mended, only that shard is made.
    assert lake.verify().broken == ()


def test_the_command_line_ends_with_3(poisoned, capsys):
    lake, folder = poisoned
    status = main(["ingest", str(lake.path), "text", "--model", str(folder), "--model-name",
                   tiny.MODEL_NAME, "--sae", str(coders()[0]), "--device", "cpu"])  # fmt: skip
    assert status == 3
    assert "was set aside" in capsys.readouterr().err


def test_a_poison_that_is_in_every_shard_is_the_ingests_own_failure(poisoned):
    lake, folder = poisoned
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    key = next(k for k in tensors if "embed_tokens" in k)
    tensors[key][:] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InvalidArgumentError):
        lake.ingest("text", saes=coders(), **{**ASKED, "model": folder,
                    "model_name": tiny.MODEL_NAME})  # fmt: skip


def test_no_such_scheduler_is_refused(tmp_path):
    lake = make_lake(tmp_path / "there")
    with pytest.raises(InvalidArgumentError, match="it does not answer"):
        lake.ingest("text", saes=coders(), scheduler="tcp://127.0.0.1:1", **ASKED)
    with pytest.raises(InvalidArgumentError, match="give 1 worker or more"):
        lake.ingest("text", saes=coders(), scheduler="local:0", **ASKED)
