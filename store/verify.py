"""Re-reading a lake: every file against its checksum, and what is there that should not be."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from scopelake.store import delta
from scopelake.store.intents import intent_path, read_intent, waiting_intents
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import (
    ACTIVATIONS,
    DENSE,
    PENDING,
    array_name,
    checksum_in_name,
    table_folder,
)
from scopelake.store.log_check import array_contradiction, file_contradiction
from scopelake.store.planned import Commit
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot

Problem = Literal["damaged", "missing", "unexpected"]

_THREADS: Final = 4
DENSE_SHARD: Final = re.compile(r"/c/\d+/0/0\Z")
"""The end of a dense shard's path; its array's metadata lies beside."""


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be."""

    path: str
    """Relative to the lake."""
    problem: Problem
    """``unexpected``: no snapshot names it; a killed writer left it, or a live one is at it."""
    table: str
    """The table it belongs to, or ``dense``."""
    corpus: str | None = None
    sae: str | None = None
    model: str | None = None
    site: str | None = None
    layer: int | None = None
    shard: int | None = None
    detail: str = ""

    def to_text(self) -> str:
        """Return it as a line: the file, and the shard that would have to be ingested again."""
        where = f"shard {self.shard} of {self.corpus}" if self.shard is not None else self.corpus
        what = [x for x in (where, self.sae, self.model) if x]
        if self.site is not None:
            what.append(f"{self.site}/{self.layer}")
        of = f" ({', '.join(what)})" if what else ""
        return f"{self.problem}: {self.path}{of}{': ' + self.detail if self.detail else ''}"


@dataclass(frozen=True)
class Verification:
    """What re-reading a snapshot found."""

    snapshot: int
    n_files: int
    n_bytes: int
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged, missing or unexpected."""
        return not self.findings

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that cost data: what is damaged or missing."""
        return tuple(f for f in self.findings if f.problem != "unexpected")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return asdict(self) | {"is_whole": self.is_whole}

    def to_text(self) -> str:
        """Return a line for each finding and one for the whole."""
        rate = self.n_bytes / max(self.seconds, 1e-9) / 1e6
        counted = f"{self.n_files:,} files, {self.n_bytes / 1e6:,.1f} MB at {rate:,.0f} MB/s"
        if self.is_whole:
            return f"snapshot {self.snapshot} is whole: {counted}"
        counts = {p: sum(f.problem == p for f in self.findings) for p in
                  ("damaged", "missing", "unexpected")}  # fmt: skip
        found = ", ".join(f"{n:,} {problem}" for problem, n in counts.items() if n)
        lines = [finding.to_text() for finding in self.findings]
        return "\n".join([*lines, f"snapshot {self.snapshot}: {found}; {counted}"])

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True)
class _Expected:
    finding: Finding
    """What is said if it is not as it should be."""
    checksum: str | None
    n_bytes: int
    action: Mapping[str, Any] | None = None
    """The Delta log's entry of it."""


def verify(
    store: LakeStore,
    snapshot: Snapshot,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Re-read every file of a snapshot and compare it with its checksum.

    Args:
        store: the lake.
        snapshot: which version of it.
        on_progress: called with bytes read and bytes in all.

    Raises:
        LakeError: a table's log cannot be read.
    """
    started = time.monotonic()
    expected = list(_expected(store, snapshot))
    total, done = sum(e.n_bytes for e in expected), 0
    findings: list[Finding] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(lambda e: _check(store.root, e), expected)
        for one, finding in zip(expected, checked, strict=True):
            done += one.n_bytes
            findings += [finding] if finding is not None else []
            if on_progress is not None:
                on_progress(done, total)
    findings += _unexpected(store, {e.finding.path for e in expected}, snapshot)
    findings += [*_arrays(store, snapshot), *_waiting(store)]
    findings.sort(key=lambda f: (f.problem, f.path))
    return Verification(
        snapshot.id, len(expected), total, time.monotonic() - started, tuple(findings)
    )


def _expected(store: LakeStore, snapshot: Snapshot) -> Iterator[_Expected]:
    """Yield every file that the snapshot consists of."""
    rows = store.read("files", snapshot).to_pylist()
    by_path = {row["path"]: row for row in rows}
    for table, version in snapshot.versions.items():
        opened = delta.open_table(store.root, table, version)
        for action in delta.added_files(opened).to_pylist():
            path = f"{table_folder(table)}/{action['path']}"
            row = by_path.pop(path, {})
            known = checksum_in_name(action["path"]) or row.get("checksum")
            yield _Expected(_finding(path, table, row), known, action["size_bytes"], action)
    for path, row in by_path.items():
        yield _Expected(_finding(path, row["kind"], row), row["checksum"], row["n_bytes"])


def _finding(path: str, table: str, row: dict[str, Any]) -> Finding:
    columns = ("corpus", "sae", "model", "site", "layer", "shard")
    known: dict[str, Any] = {column: row.get(column) for column in columns}
    return Finding(path, "damaged", table, **known)


def _check(root: Root, expected: _Expected) -> Finding | None:
    finding = expected.finding
    try:
        size = root.size(finding.path)
        if size is None:
            return replace(finding, problem="missing")
        found = root.checksum(finding.path) if size == expected.n_bytes else None
    except FileNotFoundError:
        return replace(finding, problem="missing")
    except OSError as error:
        return replace(finding, detail=f"cannot be read ({root.describe(error)})")
    if found is None:
        detail = f"{size:,} bytes instead of {expected.n_bytes:,}"
    elif expected.checksum is not None and found != expected.checksum:
        detail = f"checksum {found} instead of {expected.checksum}"
    elif expected.action is not None and (
        found := file_contradiction(root, finding.path, expected.action)
    ):
        detail = found
    else:
        return None
    return replace(finding, detail=detail)


def _arrays(store: LakeStore, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the arrays whose metadata is not what was written."""
    columns = ["corpus", "model", "site", "layer"]
    rows = store.read("files", snapshot, columns, [("kind", "=", DENSE)]).to_pylist()
    for row in {tuple(row.values()): row for row in rows}.values():
        if detail := array_contradiction(store, snapshot, **row):
            path = f"{ACTIVATIONS}/{array_name(**row)}/zarr.json"
            yield Finding(path, "damaged", ACTIVATIONS, **row, detail=detail)


def _unexpected(store: LakeStore, expected: set[str], snapshot: Snapshot) -> list[Finding]:
    """Return files that no version of the lake has named."""
    found = []
    for table in snapshot.versions:
        folder = table_folder(table)
        lives = delta.file_lives(store.root, table)
        named = expected | {f"{folder}/{name}" for name in lives}
        found += [
            Finding(entry.path, "unexpected", table)
            for entry in store.root.list(folder)
            if not entry.path.startswith(f"{folder}/_delta_log/") and entry.path not in named
        ]
    # Shards of later snapshots lie beside those of this one.
    dense = store.read("files", store.snapshot(), ["path"], [("kind", "=", DENSE)])
    named = expected | set(dense["path"].to_pylist())
    found += [
        Finding(entry.path, "unexpected", DENSE)
        for entry in store.root.list(ACTIVATIONS)
        if DENSE_SHARD.search(entry.path) and entry.path not in named
    ]
    return found


def _waiting(store: LakeStore) -> list[Finding]:
    """Return what waits to be carried out and is no commit: it would stop every writer."""
    found = []
    latest = store.snapshot().id
    for number in waiting_intents(store.root):
        text = read_intent(store.root, number)
        if number > latest and text is not None:
            path = intent_path(number)
            try:
                commit = Commit.from_json(text)
            except (ValueError, KeyError, TypeError) as error:
                found.append(Finding(path, "damaged", PENDING, detail=f"no commit ({error})"))
                continue
            lost = [r.path for r in commit.receipts if store.root.size(r.path) is None]
            if lost:
                detail = f"a commit that waits for {lost[0]}, which is not there"
                found.append(Finding(path, "damaged", PENDING, detail=detail))
    return found
