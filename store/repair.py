"""Mending a lake: what other files still tell is made again, the rest is taken out.

The token-major firings (``codes``) are what everything else of a coder follows from. A shard whose
codes are lost is taken out, so that the next ingest makes it again; postings are made again from
codes, peaks and samples from postings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from scopelake.errors import LakeBusyError, LakeError, ObjectStoreError
from scopelake.names import counted
from scopelake.store.catalog import IMPORTED, shards_of_files
from scopelake.store.checkpoints import is_checkpoint, remove_checkpoints, wrong_checkpoints
from scopelake.store.commit import Writer
from scopelake.store.delta_log import read_log
from scopelake.store.derive import remake
from scopelake.store.findings import Finding, Verification
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import DENSE, TABLES, table_folder
from scopelake.store.merge import BY_FEATURE
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard

_MENDABLE: Final = ("codes", *BY_FEATURE, "features", "neighbors", DENSE)
_NEEDED: Final = ("files", "merged", "snapshots")
"""What says of the other files what they hold; a repair reads and writes them."""

Row = dict[str, Any]
"""A row of the ``files`` table."""


@dataclass(frozen=True)
class Repair:
    """What a repair did."""

    snapshot: int
    n_files: int
    """Taken out: the damaged ones, and those that hold the same shard's firings otherwise."""
    made_again: tuple[str, ...]
    """What was made again from other files of the lake."""
    ingest_again: tuple[str, ...]
    """What to ingest or import again."""
    beyond: tuple[Finding, ...]
    """What cannot be made again from elsewhere."""
    not_mended: str = ""
    """Why what was found was not mended, if so."""

    def to_text(self) -> str:
        """Return a line for each thing done and to do, and for each that is lost."""
        lines = [f"made again: {one}" for one in self.made_again]
        lines += [f"ingest again: {one}" for one in self.ingest_again]
        lines += [f"beyond repair, restore it from a copy: {f.to_text()}" for f in self.beyond]
        if self.not_mended:
            return "\n".join([*lines, self.not_mended])
        taken = f"{counted(self.n_files, 'file')} taken out (snapshot {self.snapshot})"
        return "\n".join([*lines, taken])

    def __str__(self) -> str:
        return self.to_text()


@dataclass
class _Plan:
    """What is to leave the lake, and what is made of the rest."""

    gone: list[Row]
    receipts: list[Receipt]
    again: set[str]
    made: set[str]
    coders: set[tuple[str | None, str | None]]
    """(sae, corpus) whose files are looked at."""
    unknown: list[Finding]
    """Of coders of which nothing tells any more whether they were imported."""


def unmendable(found: Verification) -> Repair | None:
    """Return what is said where nothing can be mended: what a repair needs is damaged itself."""
    stops = [f for f in found.broken if f.table in _NEEDED or (_is_log(f) and f.table in _MENDABLE)]
    if not stops and found.snapshot:
        return None
    beyond = tuple(f for f in found.broken if not _is_mendable(f))
    n_left = len(found.broken) - len(beyond)
    why = f"{stops[0].path} is {stops[0].problem}" if stops else "the snapshots cannot be read"
    text = (
        f"nothing was mended ({counted(n_left, 'file')} might be): a repair needs the catalogue, "
        f"and {why}; restore it from a copy and repair again"
    )
    return Repair(found.snapshot, 0, (), (), beyond, text)


def repair_unopened(root: Root, found: Verification) -> Repair | None:
    """Do what can be done to a lake that may be too damaged to be opened; None: open it.

    Checkpoints that are wrong are deleted, since the log is whole without them; nothing else is
    mended then, since what else was found may have been read off them.
    """
    return _without_checkpoints(root, found) or unmendable(found)


def _without_checkpoints(root: Root, found: Verification) -> Repair | None:
    named = [f for f in found.broken if _is_log(f) and is_checkpoint(f.path)]
    wrong: set[str] = set()
    for table in TABLES:
        log = read_log(root, table)
        if not log.wrong:  # else a checkpoint may be all that there is
            # Those of older versions too, which a verification of the latest does not read.
            wrong |= {one.path for one in wrong_checkpoints(root, table, log)}
            wrong |= {f.path for f in named if f.table == table}
    if not wrong:
        return None
    remove_checkpoints(root, sorted(wrong))
    names = tuple(f"the log without {path}" for path in sorted(wrong))
    text = "nothing else was mended; verify again, since what a checkpoint says may hide the rest"
    return Repair(found.snapshot, 0, names, (), (), text)


def _is_log(finding: Finding) -> bool:
    folder = table_folder(finding.table)
    return finding.path == folder or finding.path.startswith(f"{folder}/_delta_log")


def _is_mendable(finding: Finding) -> bool:
    return finding.table in _MENDABLE and not _is_log(finding)


def repair(writer: Writer, found: Verification) -> Repair:
    """Make again or take out every damaged or missing file, in one commit.

    What an import brought goes as a whole. Contexts and the catalogue cannot be made again; where
    a repair needs what is damaged of the catalogue, nothing is changed.

    Args:
        writer: entered.
        found: of the lake's latest snapshot.

    Raises:
        DamagedFileError: a file that was whole when it was verified no longer is.
        LakeBusyError: another writer has changed the same coder, corpus or array meanwhile.
    """
    if (refusal := unmendable(found)) is not None:
        return refusal
    store = writer.store
    snapshot = store.snapshot()
    mendable = [f for f in found.broken if _is_mendable(f)]
    plan = _plan(store, snapshot, mendable)
    beyond = tuple(f for f in found.broken if f not in mendable or f in plan.unknown)
    if not plan.gone:
        return Repair(snapshot.id, 0, (), (), beyond)
    imported = _imported(store, snapshot) or set()
    paths = [row["path"] for row in plan.gone]
    runs = sorted({row["run"] for row in plan.gone} & imported)
    # A table that no row leaves is not written: it may be damaged, and a commit that was decided
    # on must not fail.
    remove = {**({"runs": ("run", runs)} if runs else {}), "merged": ("path", paths)}

    def check_unchanged(commit: Commit, now: Snapshot) -> Commit:
        # A shard that came meanwhile was cut by peaks that this repair takes out.
        if _files_of(store, now, plan.coders) != _files_of(store, snapshot, plan.coders):
            raise LakeBusyError(
                f"a repair of {counted(len(found.broken), 'file')} was asked for; another writer "
                "has changed what is beside meanwhile; verify and repair again"
            )
        return commit

    try:
        after = writer.commit(
            plan.receipts,
            transaction=f"repair:{uuid4().hex}",
            reason=f"mend {counted(len(found.broken), 'file')}",
            drop=paths,
            remove=remove,
            revise=check_unchanged,
        )
    except LakeBusyError:
        # Nothing was decided. After any other error it may be: a vacuum takes what is not needed.
        discard(store.root, plan.receipts)
        raise
    made, again = tuple(sorted(plan.made)), tuple(sorted(plan.again))
    return Repair(after.id, len(paths), made, again, beyond)


def _plan(store: LakeStore, snapshot: Snapshot, broken: Sequence[Finding]) -> _Plan:
    rows = store.read("files", snapshot).to_pylist()
    imported = _imported(store, snapshot)
    by_path = {row["path"]: row for row in rows}
    broken = [f for f in broken if f.path in by_path]  # another repair may have taken it out
    plan = _Plan([], [], set(), set(), {(f.sae, f.corpus) for f in broken}, [])
    for finding in broken:
        if finding.table == DENSE:
            row = by_path[finding.path]
            where = f"{row['site']}/{row['layer']} of {row['model']}"
            plan.gone.append(row)
            plan.again.add(f"shard {row['shard']} of {row['corpus']}: dense {where}")
        elif finding.table == "neighbors":
            plan.gone.append(by_path[finding.path])
            plan.again.add(f"neighbors of {finding.sae} (add-neighbors)")
    of_coders = {(f.sae, f.corpus) for f in broken if f.table not in (DENSE, "neighbors")}
    for sae, corpus in sorted(of_coders, key=str):
        of_coder = [r for r in rows if (r["sae"], r["corpus"]) == (sae, corpus)]
        lost = {f.path for f in broken if (f.sae, f.corpus) == (sae, corpus)}
        is_ingested = any(row["kind"] in ("codes", "postings") for row in of_coder)
        if imported is None and not is_ingested:
            plan.unknown += [f for f in broken if f.path in lost]
        elif any(row["run"] in imported for row in of_coder if imported):
            plan.gone += of_coder
            plan.again.add(f"examples of {sae} (import-examples) on {corpus}")
        elif any(row["kind"] == "tallies" for row in of_coder):
            # Of what was not kept nothing else tells.
            plan.gone += of_coder
            plan.again.add(f"all shards of {corpus}: {sae}")
        else:
            _plan_coder(store, snapshot, plan, of_coder, lost)
    return plan


def _plan_coder(
    store: LakeStore, snapshot: Snapshot, plan: _Plan, rows: Sequence[Row], lost: set[str]
) -> None:
    """Plan for the files of one coder on one corpus, of which `lost` are."""
    sae, corpus = rows[0]["sae"], rows[0]["corpus"]
    kinds = {row["kind"] for row in rows if row["path"] in lost}
    codes = [row["path"] for row in rows if row["kind"] == "codes"]
    shards = shards_of_files(store, snapshot, [path for path in codes if path in lost])
    gone = [row for row in rows if row["path"] in lost]
    if shards or "features" in kinds:
        gone += [row for row in rows if row["kind"] == "features"]
        plan.again.add(f"statistics of {sae} on {corpus}")
    plan.again |= {f"shard {shard} of {corpus}: {sae}" for shard in shards}
    # What compaction merged has no shard: rows of every shard may be in it.
    postings_gone = [
        row
        for row in rows
        if row["kind"] == "postings"
        and (row["path"] in lost or row["shard"] in shards or (shards and row["shard"] is None))
    ]
    if shards or kinds & set(BY_FEATURE):
        gone += [row for row in rows if row["kind"] in ("peaks", "samples")]
        whole = [path for path in codes if path not in lost]
        kept = [row for row in rows if row["kind"] == "postings" and row not in postings_gone]
        of_file = {path: shards_of_files(store, snapshot, [path]) for path in whole}
        wanted = {row["shard"] for row in postings_gone} - shards
        sources = [path for path in whole if of_file[path] & wanted]
        if None in wanted or any(len(of_file[path]) > 1 for path in sources):
            # Files that hold several shards: all postings are made again.
            sources, postings_gone, kept = whole, [*postings_gone, *kept], []
        made = remake(store, sae, corpus, sources, [row["path"] for row in kept])
        plan.receipts += made
        plan.made |= {f"{receipt.table} of {sae} on {corpus}" for receipt in made}
    gone += postings_gone
    plan.gone += _unique(gone)


def _files_of(
    store: LakeStore, snapshot: Snapshot, coders: set[tuple[str | None, str | None]]
) -> set[str]:
    """Return the paths of the files of some coders (dense shards have none) on their corpora."""
    rows = store.read("files", snapshot, ["sae", "corpus", "path"]).to_pylist()
    return {row["path"] for row in rows if (row["sae"], row["corpus"]) in coders}


def _imported(store: LakeStore, snapshot: Snapshot) -> set[str] | None:
    """Return the runs that imported; None where the table of runs is damaged."""
    try:
        runs = store.read("runs", snapshot, ["run", "state"]).to_pylist()
    except ObjectStoreError:
        raise
    except LakeError:
        return None
    return {row["run"] for row in runs if row["state"] == IMPORTED}


def _unique(rows: Iterable[Row]) -> list[Row]:
    return list({row["path"]: row for row in rows}.values())
