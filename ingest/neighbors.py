"""Nearest features by decoder cosine: which pairs of coders, and how they come into the lake.

Decoders are not in a lake, so the coders are named as for an ingest. A pair is one file, and is
made once: what is there already, with as many neighbors, is left alone. A killed call keeps the
pairs that it had committed, and the next one goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

import torch

from scopelake.errors import (
    CoderMismatchError,
    InvalidArgumentError,
    LakeBusyError,
    SaeNotFoundError,
)
from scopelake.ingest.coder_identity import plain_model
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.nearest import nearest
from scopelake.names import counted, shortened
from scopelake.store.commit import Writer
from scopelake.store.lake_store import LakeStore
from scopelake.store.planned import Commit
from scopelake.store.receipts import Receipt
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import discard, write_neighbors

Progress = Callable[[str, int, int], None]
Pair = tuple[CoderFiles, CoderFiles]

MOST: Final = 1024
"""Neighbors of a feature in a coder: all of them are in memory while a pair is made."""

_SECONDS: Final = 10.0
"""Pairs of so many seconds are committed together."""


@dataclass(frozen=True)
class AddedNeighbors:
    """What was added."""

    snapshot: int
    n_pairs: int
    """Pairs of coders that were compared."""
    n_already: int
    """Pairs that the lake had."""
    n_rows: int
    seconds: float
    left_out: tuple[str, ...]
    """Pairs that cannot be compared, and why."""

    def to_text(self) -> str:
        """Return it as a line, and one for each pair that was left out."""
        there = f", {self.n_already:,} there already" if self.n_already else ""
        line = (
            f"{counted(self.n_pairs, 'pair')} of SAEs compared{there}: {self.n_rows:,} neighbors "
            f"in {self.seconds:.1f} s (snapshot {self.snapshot})"
        )
        return "\n".join([line, *(f"left out: {why}" for why in self.left_out)])

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True)
class _Made:
    """What a pair's file was made of, as its ``run`` says."""

    k: int
    digests: tuple[str, str]

    @classmethod
    def parse(cls, run: str) -> _Made:
        _, k, mine, theirs = run.split()
        return cls(int(k), (mine, theirs))

    def __str__(self) -> str:
        return f"neighbors {self.k} {' '.join(self.digests)}"

    def serves(self, asked: _Made) -> bool:
        return self.digests == asked.digests and self.k >= asked.k


def add_neighbors(
    store: LakeStore,
    coders: Sequence[CoderFiles],
    others: Sequence[CoderFiles] | None,
    k: int,
    device: torch.device,
    on_progress: Progress | None = None,
) -> AddedNeighbors:
    """Compare the decoders of coders and commit each feature's `k` nearest.

    Args:
        store: the lake, which has all of these coders.
        coders: whose features have neighbors.
        others: whose features they are; None: those of `coders` themselves, each with each, where
            they can be compared.
        k: neighbors of a feature in each coder, 1 to 1,024.
        device: where it is computed.
        on_progress: called with (pair, pairs done, of how many).

    Raises:
        InvalidArgumentError: `k` is out of range.
        SaeNotFoundError: the lake does not have a coder.
        CoderMismatchError: the lake's coder of that name is another; or, of `others`, one writes
            into another space.
        CoderFileError: a value is not finite.
        LakeBusyError: other writers came first again and again.
    """
    if not 1 <= k <= MOST:
        raise InvalidArgumentError(
            f"k={k} neighbors were asked for; a feature has 1 to {MOST} in a coder; give such a k"
        )
    started = time.monotonic()
    pairs, left_out = _pairs(coders, others)
    _check_in_lake(store, store.snapshot(), list({c.name: c for p in pairs for c in p}.values()))
    with Writer(store) as writer:
        there = _there(store, store.snapshot())
        todo = [p for p in pairs if not _is_there(there, *_names(p), _asked(p, k))]
        n_rows = _Job(writer, k, device, on_progress).run(todo)
        snapshot = store.snapshot().id
    return AddedNeighbors(
        snapshot, len(todo), len(pairs) - len(todo), n_rows, time.monotonic() - started, left_out
    )


class _Job:
    """One call: files are written pair by pair and committed together every few seconds."""

    def __init__(
        self, writer: Writer, k: int, device: torch.device, on_progress: Progress | None
    ) -> None:
        self.writer, self.k, self.device = writer, k, device
        self.progress = on_progress or (lambda what, done, of: None)

    def run(self, pairs: Sequence[Pair]) -> int:
        """Make pairs; return how many rows they have."""
        waiting: list[Receipt] = []
        try:
            return self._run(pairs, waiting)
        except BaseException:
            discard(self.writer.store.root, waiting)
            raise

    def _run(self, pairs: Sequence[Pair], waiting: list[Receipt]) -> int:
        """Make pairs; `waiting` are at any time the files that were given to no commit."""
        n_rows, since = 0, time.monotonic()
        for done, pair in enumerate(pairs, 1):
            receipt = self._make(pair)
            waiting.append(receipt)
            n_rows += receipt.n_rows
            if done == len(pairs) or time.monotonic() - since > _SECONDS:
                receipts = list(waiting)
                waiting.clear()
                self._commit(receipts)
                since = time.monotonic()
            self.progress(" and ".join(_names(pair)), done, len(pairs))
        return n_rows

    def _make(self, pair: Pair) -> Receipt:
        rows = nearest(*pair, self.k, self.device)
        root = self.writer.store.root
        return write_neighbors(root, rows, *_names(pair), str(_asked(pair, self.k)))

    def _commit(self, receipts: Sequence[Receipt]) -> None:
        store = self.writer.store

        def revise(commit: Commit, now: Snapshot) -> Commit | None:
            """Leave out what another writer has made meanwhile; what had fewer is replaced."""
            there = _there(store, now)
            pairs = [(r.partition["sae"], r.partition["other_sae"]) for r in receipts]
            kept = [
                (r, pair)
                for r, pair in zip(receipts, pairs, strict=True)
                if not _is_there(there, *pair, _Made.parse(r.run))
            ]
            gone = tuple(there[pair][0] for _, pair in kept if pair in there)
            if not kept:
                return None
            return replace(commit, receipts=tuple(r for r, _ in kept), retire=gone)

        try:
            self.writer.commit(
                receipts,
                transaction=f"neighbors:{uuid4().hex}",
                reason=f"neighbors of {counted(len(receipts), 'pair')} of SAEs",
                revise=revise,
            )
        except LakeBusyError:
            # After any other error it may have been decided on, and is finished by others.
            discard(store.root, receipts)
            raise


def _there(store: LakeStore, snapshot: Snapshot) -> dict[tuple[str, str], tuple[str, _Made]]:
    """Return, by the names of a pair, its file and what that was made of."""
    rows = store.read("files", snapshot, ["path", "run"], [("kind", "=", "neighbors")])
    runs = dict(zip(rows["path"].to_pylist(), rows["run"].to_pylist(), strict=True))
    return {
        (f.partition["sae"], f.partition["other_sae"]): (f.path, _Made.parse(runs[f.path]))
        for f in store.data_files("neighbors", snapshot)
    }


def _is_there(
    there: dict[tuple[str, str], tuple[str, _Made]], sae: str, other: str, asked: _Made
) -> bool:
    return (sae, other) in there and there[sae, other][1].serves(asked)


def _asked(pair: Pair, k: int) -> _Made:
    return _Made(k, (pair[0].digest, pair[1].digest))


def _names(pair: Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


def _pairs(
    coders: Sequence[CoderFiles], others: Sequence[CoderFiles] | None
) -> tuple[list[Pair], tuple[str, ...]]:
    """Return the pairs to compare, and in words those that cannot be.

    Raises:
        CoderMismatchError: `others` were named, and a pair cannot be compared.
    """
    pairs: list[Pair] = []
    left_out: dict[str, list[Pair]] = {}
    for one in coders:
        for other in coders if others is None else others:
            why = incomparable(one, other)
            if why is None:
                pairs.append((one, other))
            elif others is None:
                left_out.setdefault(why, []).append((one, other))
            else:
                raise CoderMismatchError(
                    f"neighbors of {one.name} in {other.name} were asked for; {why}; name others"
                )
    said = (
        f"{counted(len(found), 'pair')} such as {' and '.join(_names(found[0]))}: {why}"
        for why, found in left_out.items()
    )
    return pairs, tuple(said)


def incomparable(one: CoderFiles, other: CoderFiles) -> str | None:
    """Return in words why the directions of two coders have no meaningful cosine; None: they have.

    What features add to the residual stream is of one space in all coders of a model, whatever
    layer they write to, and in its pt and it versions. ``attn_out`` is read before W_O: heads of
    different layers have nothing to do with each other.
    """
    bases = sorted({base for c in (one, other) if (base := _base(c.model_name)) is not None})
    if len(bases) > 1:
        return f"the residual streams of {' and '.join(bases)} are not the same space"
    spaces = sorted({_space(c) for c in (one, other)})
    if len(spaces) > 1:
        return f"{' and '.join(spaces)} are not the same space"
    if one.d_out != other.d_out:
        widths = sorted((one.d_out, other.d_out))
        return f"one writes {widths[0]} values and the other {widths[1]}"
    return None


def _space(coder: CoderFiles) -> str:
    target = coder.targets[0]
    if target.site == "attn_out":
        return f"the attention heads of layer {target.layer}"
    return "the residual stream"


def _base(model_name: str | None) -> str | None:
    """Return what a model's pt and it versions are both called."""
    if model_name is None:
        return None
    return plain_model(model_name).removesuffix("-it").removesuffix("-pt")


def _check_in_lake(store: LakeStore, snapshot: Snapshot, coders: Sequence[CoderFiles]) -> None:
    """Refuse coders that are not those of the lake: their names would mean two things."""
    rows = store.read("saes", snapshot, ["sae", "digest"])
    known = dict(zip(rows["sae"].to_pylist(), rows["digest"].to_pylist(), strict=True))
    if missing := sorted(c.name for c in coders if c.name not in known):
        raise SaeNotFoundError(
            f"neighbors of {shortened(missing)} were asked for; the lake has "
            f"{shortened(sorted(known)) or 'no SAEs'}; ingest them, or import their examples, first"
        )
    for coder in coders:
        if known[coder.name] not in (None, coder.digest):
            raise CoderMismatchError(
                f"coder {coder.name} was given with digest {coder.digest}; the lake's has "
                f"{known[coder.name]}; they must not be mixed: rename one or use another lake"
            )
