"""How files become part of the lake: all or nothing, exactly once, by any number of writers.

A commit becomes snapshot n by taking the number n in the log of intents; that decides it. Then
every Delta table that it touches gets one Delta commit, which carries the commit's name as an
application transaction, so that doing it again, after a crash or by several writers at once, skips
what was done. The row in ``snapshots`` comes last: until it is there, no reader that opens a
snapshot sees any of it. A writer that finds the next number taken first carries that commit out:
so commits happen one after the other, each on top of the snapshot before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace as changed
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from scopelake.errors import (
    DamagedFileError,
    DamageWarning,
    InvalidArgumentError,
    LakeBusyError,
    LakeError,
)
from scopelake.store import delta
from scopelake.store.apply import Applier
from scopelake.store.derive import derive_samples
from scopelake.store.intents import (
    intent_path,
    put_intent,
    read_intent,
    remove_intent,
    waiting_intents,
)
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import DENSE
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

Revise = Callable[[Commit, Snapshot], Commit | None]
"""Given a commit and the snapshot that it will follow, what is to be committed; None: nothing."""

_MOST_TRIES: Final = 1000


class LostFileError(LakeError):
    """A file that is to be committed is not there."""


class Writer:
    """Commits to a lake; several writers, in any processes, may be at work.

    Entering it carries out what a killed writer had decided on.

    Args:
        store: the lake.
        on_step: called after each step of a commit with ``pending``, a table's name, or ``done``.
    """

    def __init__(self, store: LakeStore, on_step: Callable[[str], None] | None = None) -> None:
        self.store = store
        self._on_step = on_step or (lambda step: None)
        self._applier = Applier(store, self._on_step)
        self._is_upgrading = False

    def __enter__(self) -> Self:
        self.finish_waiting()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._applier.forget()

    def commit(
        self,
        receipts: Sequence[Receipt],
        *,
        transaction: str,
        reason: str,
        run: str | None = None,
        rows: Mapping[str, pa.Table] | None = None,
        replace: Mapping[str, Sequence[str]] | None = None,
        retire: Sequence[str] = (),
        drop: Sequence[str] = (),
        remove: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
        revise: Revise | None = None,
    ) -> Snapshot:
        """Make files and catalogue rows part of the lake, as one snapshot.

        A `transaction` that the lake has already changes nothing. Files of a shard that another
        writer has committed meanwhile are left out, and deleted.

        Args:
            receipts: of files written for this commit.
            transaction: name of the commit, the same when it is tried again.
            reason: what it is for, in words.
            run: the run that it belongs to.
            rows: rows by table (not tables that `receipts` add files to).
            replace: by table of `rows`, key columns: rows whose values in them are those of a new
                row are replaced.
            retire: data files, relative to the lake, that leave it; older snapshots keep them.
            drop: data files, relative to the lake, that leave it and are deleted.
            remove: by table, a column and its values whose rows leave the table.
            revise: called with the commit and the snapshot that it will follow, again whenever
                that changes; returns what to commit instead, or None. What it raises ends the
                commit before anything is decided.

        Returns:
            The snapshot that holds the commit; the latest one if nothing was to be done.

        Raises:
            InvalidArgumentError: the rows do not fit their tables.
            LakeError: a receipt's file is not there.
            LakeBusyError: other writers came first a thousand times.
        """
        given = Commit(
            transaction,
            reason,
            run,
            datetime.now(UTC),
            tuple(receipts),
            _checked_rows(receipts, rows or {}, replace or {}),
            dict(replace or {}),
            tuple(retire),
            tuple(drop),
            dict(remove or {}),
        )
        self._check_files(given.receipts)
        self._upgrade()
        for _ in range(_MOST_TRIES):
            latest = self.finish_waiting()
            if self._applier.is_done(transaction):
                # By an earlier try with files of its own, or with these by whoever found them: a
                # snapshot before the latest may have them, so a vacuum has to tell.
                return latest
            revised = self._without_committed(given, latest)
            if revised is not None and revise is not None:
                revised = revise(revised, latest)
            if revised is None:
                self._discard(given.receipts, set())
                return latest
            if self._decide(latest.id + 1, revised, latest):
                self._discard(given.receipts, {r.path for r in revised.receipts})
                return self.store.snapshot(latest.id + 1)
        raise LakeBusyError(
            f"commit {transaction} was tried {_MOST_TRIES} times; other writers came first each "
            "time; try again when fewer are at work"
        )

    def finish_waiting(self) -> Snapshot:
        """Carry out what was decided on and is not done; return the latest snapshot."""
        root = self.store.root
        latest = self.store.snapshot()
        waiting = waiting_intents(root)
        if waiting and self.store.is_older():
            delta.create_missing_tables(root)
        for number in waiting:
            text = read_intent(root, number)
            latest = self.store.snapshot()
            # Only now is it sure that the intent read is that of a snapshot still to be made: a
            # late writer may put one under a number that was done and removed.
            if text is not None and number == latest.id + 1:
                self._carry_out(number, self._parse(number, text))
                latest = self.store.snapshot()
            if number <= latest.id:
                remove_intent(root, number)
        return latest

    def _decide(self, number: int, commit: Commit, latest: Snapshot) -> bool:
        """Take `number` for the commit and carry it out; False if another writer has taken it."""
        # A clock that jumped back must not make a snapshot older than the one before.
        commit = changed(commit, created_at=max(commit.created_at, latest.created_at))
        if not put_intent(self.store.root, number, commit.to_json()):
            return False
        if self.store.snapshot().id >= number:
            remove_intent(self.store.root, number)
            return False
        self._on_step("pending")
        self._carry_out(number, commit)
        remove_intent(self.store.root, number)
        self._on_step("done")
        return True

    def _parse(self, number: int, text: str) -> Commit:
        try:
            return Commit.from_json(text)
        except (ValueError, KeyError, TypeError) as error:
            path = f"{self.store.root.url}/{intent_path(number)}"
            raise DamagedFileError(
                f"{path} was to be carried out; it is no commit ({error}); restore it from a copy, "
                "or delete it: what it was to add is then left out, and can be ingested again"
            ) from error

    def _carry_out(self, number: int, commit: Commit) -> None:
        if not self._applier.is_done(commit.transaction):
            try:
                self._check_files(commit.receipts)
            except LostFileError as error:
                if commit.retire or commit.drop:
                    # What it takes out may be all that is left of its rows.
                    raise
                # It was decided on, and others may be carrying it out: no way back. Held up, it
                # would hold up everybody; carried out, it is damage like any other.
                warnings.warn(f"{error}", DamageWarning, stacklevel=2)
        self._applier.apply(number, commit)

    def _upgrade(self) -> None:
        """Make a lake of an older format one of this, before it is written to."""
        if self._is_upgrading or not self.store.is_older():
            return
        self._is_upgrading = True
        try:
            delta.create_missing_tables(self.store.root)
            receipts = derive_samples(self.store) if self.store.version() == 1 else []
            if receipts:
                reason = "samples of a lake of version 1"
                self.commit(receipts, transaction="upgrade:2", reason=reason)
            self.store.set_version()
        finally:
            self._is_upgrading = False

    def _without_committed(self, commit: Commit, latest: Snapshot) -> Commit | None:
        """Leave out what of the commit's shards the lake has; None if that was all of it."""
        if all(r.shard is None for r in commit.receipts):
            return commit
        shards = sorted({r.shard for r in commit.receipts if r.shard is not None})
        columns = ["kind", "corpus", "sae", "model", "site", "layer", "shard", "checksum"]
        # A shard's firings in both orders, its peaks and its samples go together; codes speak for
        # all, since compaction takes the others out of their shards.
        filters = [("shard", "in", shards), ("kind", "in", ["codes", DENSE])]
        there = {
            tuple(row[c] for c in columns[:-1]): row["checksum"]
            for row in self.store.read("files", latest, columns, filters).to_pylist()
        }
        merged = self.store.read(
            "merged", latest, ["sae", "corpus", "shard"], [("shard", "in", shards)]
        )
        there |= {
            ("codes", row["corpus"], row["sae"], None, None, None, row["shard"]): None
            for row in merged.to_pylist()
        }
        kept = [r for r in commit.receipts if _slot(r) not in there]
        rows, replace = dict(commit.rows), dict(commit.replace)
        # A dense shard has a fixed place: what is there now is what counts, whoever wrote it.
        dense = [self._applier.as_is(r) for r in commit.receipts if r.table == DENSE]
        again = [r for r in dense if there.get(_slot(r), r.checksum) != r.checksum]
        kept = [r for r in kept if r.table != DENSE]
        kept += [r for r in dense if _slot(r) not in there] + again
        if again:
            replace["files"] = ("path",)
        if not kept and not rows:
            return None
        return changed(commit, receipts=tuple(kept), rows=rows, replace=replace)

    def _discard(self, written: Iterable[Receipt], committed: set[str]) -> None:
        """Delete files that were written for a commit and are not part of it."""
        for receipt in written:
            if receipt.path not in committed and receipt.table != DENSE:
                self.store.root.delete(receipt.path)

    def _check_files(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            found = self.store.root.size(receipt.path)
            # Another writer may have put a dense shard anew, in other bytes.
            if found is None or (found != receipt.n_bytes and receipt.table != DENSE):
                raise LostFileError(
                    f"a commit names {receipt.path} of {receipt.n_bytes} bytes; found "
                    f"{'no file' if found is None else f'{found} bytes'} (was a vacuum run with a "
                    "short --grace?); run scopelake verify --repair, then what made the file again"
                )


def _slot(receipt: Receipt) -> tuple[str | int | None, ...]:
    """What of a shard a file holds; a lake holds each once."""
    r = receipt
    kind = r.table if r.table == DENSE else "codes"
    return (kind, r.corpus, r.sae, r.model, r.site, r.layer, r.shard)


def _checked_rows(
    receipts: Sequence[Receipt], rows: Mapping[str, pa.Table], replace: Mapping[str, Sequence[str]]
) -> dict[str, pa.Table]:
    """Return `rows` in the types of their tables."""
    own = {"files", "snapshots"} | {r.table for r in receipts}
    for table in {*rows, *replace}:
        if table not in SCHEMAS or table in own or table not in rows:
            raise InvalidArgumentError(
                f"rows for table {table!r} were given; a commit takes rows for tables that it adds "
                "no files to and that it does not write itself; check `rows` and `replace`"
            )
    checked = {}
    for table, given in rows.items():
        schema = SCHEMAS[table]
        if unknown := set(replace.get(table, ())) - set(schema.names):
            raise InvalidArgumentError(
                f"rows of table {table} were to be replaced by {sorted(unknown)}; it has "
                f"{schema.names}; give columns of it"
            )
        if set(given.column_names) != set(schema.names):
            raise InvalidArgumentError(
                f"rows for table {table} have columns {given.column_names}; it has {schema.names}; "
                "give exactly these"
            )
        checked[table] = given.select(schema.names).cast(schema)
    return checked
