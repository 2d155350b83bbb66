"""Progress on stderr: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from scopelake.names import counted

if TYPE_CHECKING:
    from scopelake.ingest.report import Progress

_LOG_EVERY_S: Final = 10.0


@contextmanager
def corpus_progress(corpus: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback for `add_corpus` that shows documents and tokens so far."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda documents, tokens: None
        return
    with console.status(f"{corpus}: reading") as status:
        yield lambda documents, tokens: status.update(
            f"{corpus}: {counted(documents, 'document')}, {counted(tokens, 'token')}"
        )


@contextmanager
def ingest_progress(corpus: str, how: str = "auto") -> Iterator[Callable[[Progress], None]]:
    """Yield a callback for `ingest` that shows rates, bytes written and time left.

    Args:
        corpus: its name.
        how: ``auto`` (a bar in a terminal, else lines), ``lines``, ``json`` (an object a line) or
            ``none``.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if how == "none":
        yield lambda now: None
        return
    if how != "auto" or not console.is_terminal:
        shown = _NowAndThen(_json_line if how == "json" else _line, corpus)
        yield shown
        if how == "json":
            shown.end()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(corpus, total=None, rates="")

        def show(now: Progress) -> None:
            bar.update(task, total=now.n_tokens, completed=now.tokens, rates=_rates(now))

        yield show


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows of several things, one after the other, how much is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, of: None
        return
    with console.status("") as status:
        yield lambda what, done, of: status.update(f"{what}: {done:,} of {of:,}")


@contextmanager
def bytes_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows bytes done of bytes in all, with the rate."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, of: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, total=of, completed=done)


class _NowAndThen:
    """Prints how far an ingest is, but not more often than every few seconds."""

    def __init__(self, line: Callable[[str, Progress], str], corpus: str) -> None:
        self._line, self._corpus = line, corpus
        self._last = time.monotonic()
        self._now: Progress | None = None

    def __call__(self, now: Progress) -> None:
        self._now = now
        if time.monotonic() - self._last >= _LOG_EVERY_S:
            self._print(now)

    def end(self) -> None:
        """Print where it ended."""
        if self._now is not None:
            self._print(self._now)

    def _print(self, now: Progress) -> None:
        self._last = time.monotonic()
        print(self._line(self._corpus, now), file=sys.stderr, flush=True)


def _line(corpus: str, now: Progress) -> str:
    share = now.tokens / max(now.n_tokens, 1)
    return f"{corpus}: {share:4.0%}  {_rates(now)}  {_left(now):.0f} s left"


def _json_line(corpus: str, now: Progress) -> str:
    return json.dumps(
        {
            "corpus": corpus,
            **asdict(now),
            "seconds": round(now.seconds, 1),
            "tokens_per_second": round(now.tokens / max(now.seconds, 1e-9), 1),
            "seconds_left": round(_left(now), 1),
        }
    )


def _left(now: Progress) -> float:
    """Return how many seconds are left, at the rate so far."""
    share = now.tokens / max(now.n_tokens, 1)
    return max(0.0, now.seconds / share - now.seconds) if share else 0.0


def _rates(now: Progress) -> str:
    elapsed = max(now.seconds, 1e-9)
    return (
        f"{now.tokens / elapsed:,.0f} tokens/s  {now.firings / elapsed:,.0f} firings/s  "
        f"{now.n_bytes / 1e6:,.0f} MB written"
    )
