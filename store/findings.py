"""What re-reading a lake finds, as results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from scopelake.names import counted

Problem = Literal["damaged", "missing", "unexpected", "left over"]

_HINT: Final = (
    "files that are left over are harmless: of a writer at work, or of a commit that was not "
    "carried out; `scopelake vacuum` deletes those older than a day"
)


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be."""

    path: str
    """Relative to the lake."""
    problem: Problem
    """``unexpected``: no snapshot names it, and no writer of ours gives such a name; ``left over``:
    no snapshot names it, and it is of a writer at work or of a commit not carried out."""
    table: str
    """The table it belongs to, or ``dense``."""
    corpus: str | None = None
    sae: str | None = None
    model: str | None = None
    site: str | None = None
    layer: int | None = None
    shard: int | None = None
    detail: str = ""
    snapshots: tuple[int, int] | None = None
    """The first and the last that need it; known where all snapshots were verified."""

    def to_text(self) -> str:
        """Return it as a line: the file, and the shard that would have to be ingested again."""
        where = f"shard {self.shard} of {self.corpus}" if self.shard is not None else self.corpus
        what = [x for x in (where, self.sae, self.model) if x]
        if self.site is not None:
            what.append(f"{self.site}/{self.layer}")
        of = f" ({', '.join(what)})" if what else ""
        text = f"{self.problem}: {self.path}{of}{': ' + self.detail if self.detail else ''}"
        if self.snapshots is None:
            return text
        first, last = self.snapshots
        needed = f"snapshot {first}" if first == last else f"snapshots {first} to {last}"
        return f"{text}; needed by {needed}"


@dataclass(frozen=True)
class Verification:
    """What re-reading a snapshot, or all of them, found."""

    snapshot: int
    """The latest that was read; 0 if the lake does not tell any more which that is."""
    n_files: int
    n_bytes: int
    seconds: float
    findings: tuple[Finding, ...]
    """What is damaged, missing or unexpected."""
    left_over: tuple[Finding, ...] = ()
    """Files of a writer at work or of a commit that was not carried out: harmless."""
    unchecked: tuple[str, ...] = ()
    """What could not be checked, each with the reason."""
    all_snapshots: bool = False
    n_snapshots: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether all was checked and nothing is damaged, missing or unexpected."""
        return not self.findings and not self.unchecked

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that cost data: what is damaged or missing."""
        return tuple(f for f in self.findings if f.problem != "unexpected")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return asdict(self) | {"is_whole": self.is_whole}

    def to_text(self) -> str:
        """Return a line for each finding and one for the whole."""
        lines = [finding.to_text() for finding in (*self.findings, *self.left_over)]
        if self.left_over:
            lines.append(_HINT)
        if self.unchecked:
            lines.append(f"could not be checked: {'; '.join(self.unchecked)}")
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        rate = self.n_bytes / max(self.seconds, 1e-9) / 1e6
        counts = {p: sum(f.problem == p for f in (*self.findings, *self.left_over)) for p in
                  ("damaged", "missing", "unexpected", "left over")}  # fmt: skip
        found = [f"{n:,} {problem}" for problem, n in counts.items() if n]
        read = f"{counted(self.n_files, 'file')}, {self.n_bytes / 1e6:,.1f} MB at {rate:,.0f} MB/s"
        if self.is_whole:
            are = "are" if self.n_snapshots > 1 else "is"
            return f"{self._what()} {are} whole: {'; '.join([read, *found])}"
        if self.unchecked:
            found.append("not all could be checked")
        return f"{self._what()}: {', '.join(found)}; {read}"

    def _what(self) -> str:
        if self.n_snapshots > 1:
            return f"{self.n_snapshots:,} snapshots up to {self.snapshot}"
        return f"snapshot {self.snapshot}" if self.snapshot else "a lake without its snapshots"

    def __str__(self) -> str:
        return self.to_text()
