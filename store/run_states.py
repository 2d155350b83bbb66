"""Runs that say that they are running, and whether they are."""

from __future__ import annotations

import json
from typing import Final

import pyarrow as pa

from scopelake.store.lake_store import LakeStore
from scopelake.store.processes import is_gone
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

RUNNING: Final = "running"
INTERRUPTED: Final = "interrupted"


def state_now(state: str, config: str) -> tuple[str, str | None]:
    """Return what has become of a run.

    Args:
        state: as its row of the runs table says.
        config: that row's, JSON.

    Returns:
        Its state, ``interrupted`` if its process is gone; and, of one that may be running but whose
        process cannot be looked for from here, the machine's name.
    """
    if state != RUNNING:
        return state, None
    host = json.loads(config).get("host", {})
    gone = is_gone(host.get("process"))
    if gone is None:
        return state, host.get("name", "a machine that it does not name")
    return (INTERRUPTED if gone else state), None


def interrupted_runs(store: LakeStore, snapshot: Snapshot, but: str) -> pa.Table:
    """Return the rows of runs that say that they are running and whose process is gone.

    Args:
        store: the lake.
        snapshot: as of which.
        but: a run that is left out.

    Returns:
        Them, with ``interrupted`` as state.
    """
    rows = store.read("runs", snapshot, filters=[("state", "=", RUNNING)]).to_pylist()
    found = [
        row | {"state": INTERRUPTED}
        for row in rows
        if row["run"] != but and state_now(row["state"], row["config"])[0] == INTERRUPTED
    ]
    return pa.Table.from_pylist(found, schema=SCHEMAS["runs"])
