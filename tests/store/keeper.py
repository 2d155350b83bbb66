"""A process that keeps a lake in order again and again, until it is killed or told to stop.

keeper.py <lake> <vacuum | compact | repair> <file whose presence says stop>
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from scopelake.errors import LakeBusyError
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.lake_store import LakeStore
from scopelake.store.repair import repair
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify


def main(root: str, what: str, stop: str) -> None:
    store = LakeStore.open(root)
    while not Path(stop).exists():
        try:
            with Writer(store) as writer:
                if what == "vacuum":
                    vacuum(writer, VacuumConfig(None, 1, timedelta(hours=1)))
                elif what == "compact":
                    compact(writer, rows_per_file=60)
                else:
                    repair(writer, verify(store, store.snapshot()))
        except LakeBusyError:
            continue  # another keeper was faster


if __name__ == "__main__":
    main(*sys.argv[1:])
