"""Prompts inspected one after another, with the model and the coders in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from scopelake.handle import LakeHandle
from scopelake.names import FiringRanking, check_text
from scopelake.store.lake_store import LakeStore

if TYPE_CHECKING:
    from scopelake.ingest.inspect_prompt import PromptReader
    from scopelake.query.inspection import Inspection


class Inspector:
    """A model and coders that stay loaded; `Lake.inspector` makes one.

    Args:
        lake: whose corpora prompts are compared with, and where they are kept.
        prompts: the model and coders.
    """

    def __init__(self, lake: LakeHandle, prompts: PromptReader) -> None:
        self._lake, self._prompts = lake, prompts

    def inspect(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        generate: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        k: int | None = 10,
        by: FiringRanking = "activation",
        against: str | None = None,
        keep: bool = True,
    ) -> Inspection:
        """Inspect one prompt; arguments and errors are those of `Lake.inspect`."""
        from scopelake.ingest.replies import ReplyConfig
        from scopelake.ingest.sources import PromptSource
        from scopelake.query.connect import connect_rows
        from scopelake.query.inspection_rows import (
            InspectionConfig,
            find_comparison,
            read_inspection,
        )

        lake, prompts = self._lake, self._prompts
        if keep:
            lake._check_writable()
        for what, value in (("by", by), ("against", against)):
            if value is not None:
                check_text(what, value)
        config = InspectionConfig(k, by, against)
        replies = None if generate is None else ReplyConfig(generate, temperature, seed)
        source = PromptSource(prompt)
        names = [c.name for c in prompts.coders]
        there = connect_rows(lake._store, lake._snapshot)
        comparison = find_comparison(there, lake._store, lake._snapshot, names, config)
        prompts.check(lake._store, source, replies)
        with _place(lake._store, keep=keep) as store:
            done = prompts.ingest(store, source, replies)
            if keep:
                lake.refresh()
            snapshot = lake._snapshot if keep else store.snapshot()
            return read_inspection(
                connect_rows(store, snapshot), store, snapshot, done.corpus, comparison, config,
                prompts.tokenizer.pieces, model=prompts.model.name, errors=done.errors, kept=keep,
            )  # fmt: skip


@contextmanager
def _place(store: LakeStore, *, keep: bool) -> Iterator[LakeStore]:
    """Yield the lake that a prompt goes to: `store`, or an empty one that is deleted again."""
    if keep:
        yield store
        return
    with TemporaryDirectory(prefix="scopelake-") as folder:
        yield LakeStore.create(Path(folder) / "lake")
