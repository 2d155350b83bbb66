"""What of an ingest becomes part of the lake: catalogue rows, shards, statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import LakeBusyError
from scopelake.ingest.look_back import is_seen
from scopelake.ingest.model import ModelIdentity
from scopelake.ingest.plan import (
    IngestConfig,
    IngestPlan,
    check_catalogue,
    check_precision,
    find_corpus,
)
from scopelake.ingest.report import LOG
from scopelake.ingest.shard_files import ShardFiles
from scopelake.store.commit import Writer
from scopelake.store.keeping import parse_keep
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.run_states import interrupted_runs
from scopelake.store.snapshot import Snapshot

_REPLACED: Final = {
    "saes": ("sae",),
    "models": ("model",),
    "runs": ("run",),
    "evaluations": ("sae", "corpus"),
}
"""By table, columns by which a new row takes the place of an old one."""


class Committer:
    """Commits what an ingest made.

    Args:
        writer: to the lake.
        plan: of the ingest.
        config: the ingest's.
        model: whose activations are encoded.
    """

    def __init__(
        self, writer: Writer, plan: IngestPlan, config: IngestConfig, model: ModelIdentity
    ) -> None:
        self._writer, self._plan, self._config, self._model = writer, plan, config, model
        self.last = 0
        """The snapshot that this process made last."""
        self._others = False
        """Whether another writer has made one since the ingest began."""

    def rows(
        self, step: str, rows: Mapping[str, pa.Table], receipts: Sequence[Receipt] = ()
    ) -> Snapshot:
        """Commit catalogue rows and files that belong to no shard."""
        reason = f"{step} ingest of {self._config.corpus}"
        return self._commit(receipts, step, reason, rows, ())

    def shards(self, made: Sequence[ShardFiles]) -> tuple[Snapshot, list[ShardFiles]]:
        """Commit shards, all at once.

        Returns:
            The snapshot with them, and those that must be made again: a repair has taken out what
            they looked back at.

        Raises:
            LostShardError: one's files are lost in part; the others are committed.
        """
        keeps_all = parse_keep(self._config.keep).is_all
        for files in made:
            if (lost := files.lost(keeps_all=keeps_all)) is not None:
                if whole := [f for f in made if f.lost(keeps_all=keeps_all) is None]:
                    self.shards(whole)
                raise lost
        stale: list[ShardFiles] = []
        receipts = [receipt for files in made for receipt in files.receipts]
        numbers = [files.shard.index for files in made]
        what = f"shard {numbers[0]}" if len(made) == 1 else f"{len(made)} shards"
        snapshot = self._commit(
            receipts, f"{numbers[0]}", f"ingest {self._config.corpus} {what}", {}, made, stale
        )
        for files in made:
            if files not in stale:
                LOG.info("shard committed", extra={"scopelake": _committed(files, snapshot)})
        return snapshot, stale

    def _commit(
        self,
        receipts: Sequence[Receipt],
        step: str,
        reason: str,
        rows: Mapping[str, pa.Table],
        made: Sequence[ShardFiles],
        stale: list[ShardFiles] | None = None,
    ) -> Snapshot:
        is_revised = False

        def revise(commit: Commit, snapshot: Snapshot) -> Commit | None:
            nonlocal is_revised
            is_revised = True
            return self._revise(commit, snapshot, made, [] if stale is None else stale)

        # What a shard holds, not this name, keeps it from being committed twice: a shard that was
        # taken out, because it was damaged, comes back under the same run.
        snapshot = self._writer.commit(
            receipts,
            transaction=f"{self._plan.run}:{step}:{uuid4().hex}",
            reason=reason,
            run=self._plan.run,
            rows=rows,
            replace={table: _REPLACED[table] for table in rows},
            revise=revise,
        )
        # Not asked means that others had committed all of it before.
        self._others |= not is_revised
        self.last = snapshot.id
        return snapshot

    def _revise(
        self,
        commit: Commit,
        snapshot: Snapshot,
        made: Sequence[ShardFiles],
        stale: list[ShardFiles],
    ) -> Commit | None:
        """Check what another writer may have changed since the plan was made."""
        store, corpus = self._writer.store, self._config.corpus
        stale.clear()
        self._others |= bool(self.last) and snapshot.id != self.last
        if self._others or not self.last:
            check_catalogue(store, snapshot, corpus, self._model, self._plan.coders)
            names = [coder.name for coder in self._plan.coders]
            check_precision(store, snapshot, self._config, self._model.dtype, names)
            stale += [
                files for files in made if not is_seen(store, snapshot, corpus, files.looked_back)
            ]
        is_same = find_corpus(store, snapshot, corpus)["n_tokens"] == self._plan.corpus["n_tokens"]
        of_all = "evaluations" in commit.rows or any(r.table == "features" for r in commit.receipts)
        if of_all and not is_same:
            raise LakeBusyError(
                f"statistics on {corpus!r} were to be committed; documents were appended to it "
                "meanwhile; ingest again, which does what is new"
            )
        rows = dict(commit.rows)
        if "runs" in rows:
            mine = rows["runs"].filter(pc.equal(rows["runs"]["run"], self._plan.run))
            others = interrupted_runs(store, snapshot, but=self._plan.run)
            rows["runs"] = pa.concat_tables([mine, others])
        gone = {receipt.path for files in stale for receipt in files.receipts}
        kept = [
            r
            for r in commit.receipts
            if r.path not in gone
            and (
                r.table != "features"
                or not store.data_files("features", snapshot, sae=r.sae, corpus=r.corpus)
            )
        ]
        if made and not kept:
            return None
        return replace(commit, receipts=tuple(kept), rows=rows)


def _committed(files: ShardFiles, snapshot: Snapshot) -> dict[str, object]:
    return {
        "shard": files.shard.index,
        "snapshot": snapshot.id,
        "tokens": files.tokens,
        "firings": files.firings,
        "bytes": files.n_bytes,
        "where": files.where,
    }
