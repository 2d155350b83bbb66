"""A process that keeps a lake in order, again and again or once.

keeper.py <lake> <vacuum | compact | repair> <file whose presence says stop>
keeper.py <lake> <vacuum | compact | repair> <points to live, 0: all>

Killed at a point, it is so by SIGKILL: a point is the end of a step of a commit, of a file put in
its place, or of one deleted. At the end it prints the points that it passed.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from scopelake.errors import LakeBusyError
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.folder_root import FolderRoot
from scopelake.store.lake_store import LakeStore
from scopelake.store.repair import repair
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify


class Points:
    """Counts points, and kills the process at one."""

    def __init__(self, last: int) -> None:
        self.n, self._last = 0, last

    def at(self, name: object) -> None:
        self.n += 1
        if self.n == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def count(self, method: str) -> None:
        """Count each call of a method of the lake's files."""
        plain = getattr(FolderRoot, method)

        def counted(root: FolderRoot, *words: Any) -> Any:
            answer = plain(root, *words)
            self.at(method)
            return answer

        setattr(FolderRoot, method, counted)


def keep(writer: Writer, what: str, grace: timedelta) -> None:
    if what == "vacuum":
        vacuum(writer, VacuumConfig(None, 1, grace))
    elif what == "compact":
        compact(writer, rows_per_file=60)
    else:
        repair(writer, verify(writer.store, writer.store.snapshot()))


def main(path: str, what: str, until: str) -> None:
    store = LakeStore.open(path)
    if until.isdecimal():
        points = Points(int(until))
        for method in ("put", "put_new", "delete"):
            points.count(method)
        with Writer(store, on_step=points.at) as writer:
            keep(writer, what, timedelta(0))
        print(points.n)
        return
    while not Path(until).exists():
        try:
            with Writer(store) as writer:
                keep(writer, what, timedelta(hours=1))
        except LakeBusyError:
            continue  # another keeper was faster


if __name__ == "__main__":
    main(*sys.argv[1:])
