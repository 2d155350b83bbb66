"""Compaction, vacuum and repair killed at each of many points: what they began can be ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scopelake
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

KEEPER = Path(__file__).with_name("keeper.py")
TABLES = {
    "codes": ["context", "position", "feature", "activation"],
    "postings": ["feature", "context", "position", "activation"],
    "peaks": ["feature", "rank", "context", "position", "activation"],
    "samples": ["feature", "band", "priority", "context"],
}
EXACT = ("codes", "postings")
N_SHARDS, N_POINTS = 4, 2


def keep(root: Path, what: str, points: int) -> tuple[int, int]:
    """Run a keeper; return its exit status and the points that it passed, if it came to its end."""
    done = subprocess.run(
        [sys.executable, "-P", str(KEEPER), str(root), what, str(points)],
        env=os.environ | {"PYTHONPATH": str(Path(scopelake.__file__).parents[1])},
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, int(done.stdout or 0)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    """By keeper, a lake that it has something to do in."""
    made = {}
    for what in ("compact", "vacuum", "repair"):
        store = LakeStore.create(tmp_path_factory.mktemp("lakes") / what)
        n = 300
        with Writer(store) as writer:
            for shard in range(N_SHARDS):
                firings = Firings(
                    np.arange(n) + n * shard, np.ones(n, np.int32),
                    np.arange(n, dtype=np.int32) % 50, np.linspace(1, 9, n, dtype=np.float32),
                    np.zeros(n, np.int8),
                )  # fmt: skip
                receipts = write_firings(
                    store.root, firings, sae="s", corpus="c", shard=shard, run="r", bits=23
                )
                writer.commit(receipts, transaction=f"{shard}", reason="shard")
        if what == "vacuum":
            assert keep(store.root.path, "compact", 0)[0] == 0
        made[what] = store
    lost = made["repair"].data_files("postings", made["repair"].snapshot())[1]
    (made["repair"].root.path / lost.path).write_bytes(b"damaged")
    return made


def content(store):
    snapshot = store.snapshot()
    return {
        table: sorted(tuple(r.values()) for r in store.read(table, snapshot, columns).to_pylist())
        for table, columns in TABLES.items()
    }


def files(store):
    """Count the data files that are there, by table."""
    return {table: len(list(store.root.path.glob(f"tables/{table}/sae=*/**/*.parquet")))
            for table in TABLES}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compact", "vacuum", "repair"])
def test_a_keeper_killed_at_any_point_can_be_run_again(lakes, tmp_path, what):
    root = lakes[what].root.path
    shutil.copytree(root, tmp_path / "whole")
    status, n_points = keep(tmp_path / "whole", what, 0)
    assert status == 0
    whole = LakeStore.open(tmp_path / "whole")
    assert keep(tmp_path / "whole", "vacuum", 0)[0] == 0
    assert verify(whole, whole.snapshot()).is_whole
    rng = np.random.default_rng(4)
    chosen = {1, n_points, *rng.choice(np.arange(2, n_points), N_POINTS, replace=False).tolist()}
    for point in sorted(chosen):
        copy = tmp_path / f"{point}"
        shutil.copytree(root, copy)
        assert keep(copy, what, point) == (-9, 0)
        store = LakeStore.open(copy)
        if what != "repair":  # what is damaged stays so until it is mended
            # Peaks and samples of files that are not merged yet have more rows than count.
            assert {t: content(store)[t] for t in EXACT} == {t: content(whole)[t] for t in EXACT}
            assert verify(store, store.snapshot()).broken == ()
        assert keep(copy, what, 0)[0] == 0
        assert keep(copy, "vacuum", 0)[0] == 0
        assert content(store) == content(whole)
        assert verify(store, store.snapshot()).is_whole
        assert files(store) == files(whole)
