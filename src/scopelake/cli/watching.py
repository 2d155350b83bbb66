"""What a long verb shows and how it is stopped: progress, a log, Ctrl-C at a shard's end."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from scopelake.cli.output import check_output

_LOGGER = "scopelake"


def add_watching(parser: argparse.ArgumentParser) -> None:
    """Add how progress is shown, and a log."""
    parser.add_argument(
        "--progress",
        choices=("auto", "lines", "json", "none"),
        default="auto",
        help="on stderr: a bar in a terminal and else a line now and then (auto), lines, JSON "
        "lines, or nothing",
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="append what happens to this file, as JSON lines"
    )


@contextmanager
def watched(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield `progress` and `stop` for a verb of the library; a first Ctrl-C sets `stop`.

    A dry run writes nothing, no log either.
    """
    from scopelake.progress import ingest_progress

    stop = threading.Event()
    with (
        _logged(None if arguments.dry_run else arguments.log),
        _stopped_by_interrupt(stop),
        ingest_progress(arguments.corpus, arguments.progress) as progress,
    ):
        yield {"progress": progress, "stop": stop}


@contextmanager
def _stopped_by_interrupt(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)
    if earlier is signal.SIG_IGN:  # a job in the background
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(
            "scopelake: stopping once the shards that are begun are in the lake; interrupt again "
            "to stop at once",
            file=sys.stderr,
        )

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    check_output("json", str(path), overwrite=True)
    logger = logging.getLogger(_LOGGER)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    earlier = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(earlier)
        handler.close()


class _JsonLines(logging.Formatter):
    """An object a line: time, level, event, and what the event says."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        said = getattr(record, "scopelake", {})
        return json.dumps(
            {"time": at, "level": record.levelname, "event": record.getMessage(), **said}
        )
