"""Commits, crashes, compactions, damage, repairs and vacuums in any order, against a plain model.

The model is a set of (coder, shard) for every snapshot; a shard's firings follow from its name.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scopelake.errors import SnapshotNotFoundError
from scopelake.store.commit import Writer
from scopelake.store.compact import compact
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.repair import repair
from scopelake.store.vacuum import VacuumConfig, vacuum
from scopelake.store.verify import verify
from scopelake.store.writer import write_firings

SAES = ("a", "b")
STEPS = ("pending", "codes", "postings", "peaks", "samples", "files", "merged", "snapshots", "done")
Shard = tuple[str, int]


def firings_of(shard: Shard) -> list[tuple[int, int, int, float]]:
    """context, position, feature, activation: 7 of each shard, features shared by all shards."""
    sae, number = shard
    return [
        (10 * number + i, i, 3 * i, float(1 + SAES.index(sae) + number / 8 + i / 64))
        for i in range(7)
    ]


def to_firings(rows: list[tuple[int, int, int, float]]) -> Firings:
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    types = (np.int64, np.int32, np.int32, np.float32)
    typed = (c.astype(t) for c, t in zip(columns, types, strict=True))
    return Firings(*typed, kind=np.zeros(len(rows), np.int8))


class Crash(BaseException):
    """The process ends here."""


class LakeMachine(RuleBasedStateMachine):
    """A lake, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = LakeStore.create(self.folder / "lake")
        self.there: frozenset[Shard] = frozenset()
        self.history: dict[int, frozenset[Shard]] = {1: self.there}
        self.decided: frozenset[Shard] | None = None
        """What a commit that crashed after it was decided on will make of the lake."""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def writer(self, crash: str | None = None) -> Writer:
        def step(name: str) -> None:
            if name == crash:
                raise Crash

        return Writer(self.store, on_step=step)

    def finish(self) -> None:
        """Whoever writes next carries out what was decided on."""
        if self.decided is not None:
            self.there, self.decided = self.decided, None
            self.history[self.store.snapshot().id] = self.there

    def done(self, there: frozenset[Shard]) -> None:
        self.there = there
        self.history[self.store.snapshot().id] = there

    @rule(sae=st.sampled_from(SAES), number=st.integers(0, 3),
          crash=st.none() | st.sampled_from(STEPS))  # fmt: skip
    def commit_a_shard(self, sae: str, number: int, crash: str | None) -> None:
        with self.writer():
            pass
        self.finish()
        shard = (sae, number)
        new = self.there | {shard}
        receipts = write_firings(
            self.store.root, to_firings(firings_of(shard)), sae=sae, corpus="c", shard=number,
            run="r", bits=23,
        )  # fmt: skip
        try:
            with self.writer(crash) as writer:
                writer.commit(receipts, transaction=f"{np.random.random()}", reason="shard")
        except Crash:
            if crash in ("snapshots", "done"):
                self.done(new)
            else:
                self.decided = new
        else:
            self.done(new)

    @rule(rows_per_file=st.sampled_from([1, 20, 1000]), crash=st.none() | st.sampled_from(STEPS))
    def compact_it(self, rows_per_file: int, crash: str | None) -> None:
        with self.writer():
            pass
        self.finish()
        try:
            with self.writer(crash) as writer:
                compact(writer, rows_per_file=rows_per_file)
        except Crash:
            self.decided = self.there  # a compaction changes nothing
        self.history[self.store.snapshot().id] = self.there
        if self.decided is not None:
            with self.writer():
                pass
            self.finish()

    @rule(keep=st.integers(1, 4))
    def vacuum_it(self, keep: int) -> None:
        with self.writer() as writer:
            self.finish()
            before = self.store.snapshot().id
            done = vacuum(writer, VacuumConfig(None, keep, timedelta(0)))
        gone = [n for n in sorted(self.history) if n <= before][:-keep]
        for number in gone:
            del self.history[number]
        if done.snapshot != before:
            self.done(self.there)

    @rule(
        table=st.sampled_from(["codes", "postings", "peaks", "samples"]),
        which=st.integers(0, 100),
        is_missing=st.booleans(),
    )
    def damage_and_repair(self, table: str, which: int, is_missing: bool) -> None:
        with self.writer():
            pass
        self.finish()
        files = self.store.data_files(table, self.store.snapshot())
        if not files:
            return
        file = files[which % len(files)]
        path = self.folder / "lake" / file.path
        if is_missing:
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            data[which % len(data)] ^= 1
            path.write_bytes(data)
        found = verify(self.store, self.store.snapshot())
        assert [f.problem for f in found.broken] == ["missing" if is_missing else "damaged"]
        with self.writer() as writer:
            repair(writer, found)
        rows = self.store.read("codes", self.store.snapshot(), ["sae", "context"]).to_pylist()
        left = frozenset((row["sae"], row["context"] // 10) for row in rows)
        sae = file.partition["sae"]
        assert {s for s in left if s[0] != sae} == {s for s in self.there if s[0] != sae}
        # Codes are what all else follows from: without a file of them its shards are lost.
        assert left < self.there if table == "codes" else left == self.there
        # Older snapshots named that file too.
        self.history = {}
        self.done(left)

    @invariant()
    def every_snapshot_is_as_it_was(self) -> None:
        latest = self.store.snapshot().id
        for number in {*sorted(self.history)[-2:], *sorted(self.history)[:1]}:
            self.check(number, self.history[number])
        assert latest in self.history

    def check(self, number: int, expected: frozenset[Shard]) -> None:
        snapshot = self.store.snapshot(number)
        wanted = sorted((s[0], *row) for s in expected for row in firings_of(s))
        for table in ("codes", "postings"):
            columns = ["sae", "context", "position", "feature", "activation"]
            rows = self.store.read(table, snapshot, columns).to_pylist()
            assert sorted(tuple(r.values()) for r in rows) == wanted
        for table in ("peaks", "samples"):
            rows = self.store.read(table, snapshot, ["sae", "context", "feature"]).to_pylist()
            assert sorted(tuple(r.values()) for r in rows) == sorted(
                (sae, context, feature) for sae, context, _, feature, _ in wanted
            )


LakeMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLakeMachine = pytest.mark.slow(LakeMachine.TestCase)


def test_a_snapshot_that_is_gone_is_no_other(tmp_path):
    """The machine deletes what a vacuum removed from its model; here is what a reader is told."""
    store = LakeStore.create(tmp_path / "lake")
    with Writer(store) as writer:
        writer.commit([], transaction="a", reason="a")
        vacuum(writer, VacuumConfig(None, 1, timedelta(0)))
    with pytest.raises(SnapshotNotFoundError, match="a vacuum removed it"):
        store.snapshot(1)
