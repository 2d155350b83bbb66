"""Progress on stderr: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

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
            f"{corpus}: {documents:,} documents, {tokens:,} tokens"
        )


@contextmanager
def ingest_progress(corpus: str) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback for `ingest` that shows rates, bytes written and time left."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_lines(corpus)
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
    started = time.monotonic()
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(corpus, total=None, rates="")

        def show(now: Progress) -> None:
            bar.update(task, total=now.n_tokens, completed=now.tokens, rates=_rates(now, started))

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


def _log_lines(corpus: str) -> Callable[[Progress], None]:
    started = time.monotonic()
    last = [started]

    def show(now: Progress) -> None:
        if time.monotonic() - last[0] < _LOG_EVERY_S:
            return
        last[0] = time.monotonic()
        share = now.tokens / max(now.n_tokens, 1)
        elapsed = last[0] - started
        left = elapsed / share - elapsed if share else 0.0
        print(
            f"{corpus}: {share:4.0%}  {_rates(now, started)}  {max(left, 0):.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show


def _rates(now: Progress, started: float) -> str:
    elapsed = max(time.monotonic() - started, 1e-9)
    return (
        f"{now.tokens / elapsed:,.0f} tokens/s  {now.firings / elapsed:,.0f} firings/s  "
        f"{now.n_bytes / 1e6:,.0f} MB written"
    )
