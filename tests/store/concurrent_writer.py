"""A writer process: commits every shard of an SAE, and kills itself after so many steps.

concurrent_writer.py <lake> <number of the writer> <sae> <steps to live, 0: all> <shards>
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pyarrow as pa

from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_firings


def shard_firings(shard: int) -> Firings:
    n = 40
    return Firings(
        np.arange(shard * n, shard * n + n),
        np.ones(n, np.int32),
        np.arange(n, dtype=np.int32),
        np.full(n, shard + 1, np.float32),
        np.zeros(n, np.int8),
    )


def main(root: str, writer: str, sae: str, kill_after: int, n_shards: int) -> None:
    store = LakeStore.open(root)
    steps = [0]

    def step(name: str) -> None:
        steps[0] += 1
        if steps[0] == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    with Writer(store, on_step=step) as lake:
        for shard in range(n_shards):
            receipts = write_firings(
                store.root, shard_firings(shard), sae=sae, corpus="c", shard=shard,
                run=f"r{writer}", bits=23,
            )  # fmt: skip
            run = f"{sae}-{shard}"
            lake.commit(
                receipts, transaction=f"{writer}:{shard}", reason=writer, run=f"r{writer}",
                rows={"runs": pa.Table.from_pylist([{"run": run}], schema=SCHEMAS["runs"])},
                replace={"runs": ("run",)},
            )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
