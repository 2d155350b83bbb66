"""Taking damaged shards out of a lake, so that the next ingest makes them again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from scopelake.store.catalog import IMPORTED
from scopelake.store.commit import Writer
from scopelake.store.layout import DENSE
from scopelake.store.verify import Finding, Verification

_MENDABLE: Final = ("codes", "postings", "peaks", "features", DENSE)


@dataclass(frozen=True)
class Repair:
    """What a repair did."""

    snapshot: int
    n_files: int
    """Taken out: the damaged ones, and those that hold the same shard's firings otherwise."""
    ingest_again: tuple[str, ...]
    """What to ingest or import again."""
    beyond: tuple[Finding, ...]
    """What cannot be made again from elsewhere."""

    def to_text(self) -> str:
        """Return a line for each thing to do, and for each that is lost."""
        lines = [f"ingest again: {one}" for one in self.ingest_again]
        lines += [f"beyond repair, restore it from a copy: {f.to_text()}" for f in self.beyond]
        return "\n".join([*lines, f"{self.n_files:,} files taken out (snapshot {self.snapshot})"])

    def __str__(self) -> str:
        return self.to_text()


def repair(writer: Writer, found: Verification) -> Repair:
    """Take every shard with a damaged or missing file out of the lake, in one commit.

    A shard's files in both orders and its peaks go together, and with them the statistics of the
    coder on that corpus, which the next ingest makes again. What an import brought goes as a whole.
    Contexts and the catalogue cannot be made again.

    Args:
        writer: entered.
        found: of the lake's latest snapshot.
    """
    store = writer.store
    snapshot = store.snapshot()
    rows = store.read("files", snapshot).to_pylist()
    mendable = [f for f in found.broken if f.table in _MENDABLE]
    beyond = tuple(f for f in found.broken if f not in mendable)
    gone = [row for row in rows if any(_goes_with(row, f) for f in mendable)]
    if not gone:
        return Repair(snapshot.id, 0, (), beyond)
    runs = store.read("runs", snapshot, ["run", "state"]).to_pylist()
    imported = {r["run"] for r in runs if r["state"] == IMPORTED}
    after = writer.commit(
        [],
        transaction=f"repair:{uuid4().hex}",
        reason=f"take out {len(gone)} files of damaged shards",
        drop=[row["path"] for row in gone],
        remove={"runs": ("run", sorted({row["run"] for row in gone} & imported))},
    )
    return Repair(after.id, len(gone), tuple(sorted(_again(gone, imported))), beyond)


def _goes_with(row: dict[str, Any], finding: Finding) -> bool:
    """Whether a file has to go because of what was found."""
    if row["path"] == finding.path:
        return True
    if finding.table == DENSE or (row["sae"], row["corpus"]) != (finding.sae, finding.corpus):
        return False
    if row["kind"] == "features" or finding.shard is None:
        # What compaction merged has no shard: all shards go into it.
        return finding.table != "features"
    if row["shard"] is None:
        return True
    return row["shard"] == finding.shard and finding.table != "features"


def _again(gone: Iterable[dict[str, Any]], imported: set[str]) -> set[str]:
    found = set()
    for row in gone:
        if row["run"] in imported:
            found.add(f"examples of {row['sae']} (import-examples) on {row['corpus']}")
        elif row["kind"] == DENSE:
            where = f"{row['site']}/{row['layer']} of {row['model']}"
            found.add(f"shard {row['shard']} of {row['corpus']}: dense {where}")
        elif row["shard"] is not None:
            found.add(f"shard {row['shard']} of {row['corpus']}: {row['sae']}")
        else:
            found.add(f"statistics of {row['sae']} on {row['corpus']}")
    return found
