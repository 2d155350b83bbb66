"""Prompts inspected one after another, with the model and the coders in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scopelake.errors import InvalidArgumentError
from scopelake.handle import LakeHandle
from scopelake.names import FiringRanking, check_text
from scopelake.store.throwaway import EmptyLakes

if TYPE_CHECKING:
    from scopelake.ingest.coders import CoderFiles
    from scopelake.ingest.inspect_prompt import PromptReader
    from scopelake.ingest.replies import ReplyConfig
    from scopelake.ingest.sources import PromptSource
    from scopelake.query.connect import Connection
    from scopelake.query.inspection import Inspection
    from scopelake.query.inspection_rows import Comparison, InspectionConfig


@dataclass(frozen=True)
class InspectionRequest:
    """What is asked of an `Inspector`; wrong arguments are refused when it is made."""

    prompt: str | Sequence[Mapping[str, str]]
    generate: int | None = None
    temperature: float = 0.0
    seed: int = 0
    k: int | None = 10
    by: FiringRanking = "activation"
    against: str | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        for what, value in (("by", self.by), ("against", self.against)):
            if value is not None:
                check_text(what, value)
        self._check_values()
        if self.generate is not None and not self.source.chat:
            raise InvalidArgumentError(
                f"generate={self.generate} was asked for a text; replies belong to chats; give "
                "messages (--chat), or leave generate out"
            )
        if self.generate is not None and not self.source.may_be_answered:
            raise InvalidArgumentError(
                f"generate={self.generate} was asked for a chat that does not end with the user; "
                "the model answers the user; end with a message of theirs, or leave generate out"
            )

    def _check_values(self) -> None:
        """Let each part refuse what is not of its domain."""
        _ = self.config, self.replies
        for _ in self.source.documents():
            pass

    @property
    def source(self) -> PromptSource:
        """The prompt."""
        from scopelake.ingest.sources import PromptSource

        return PromptSource(self.prompt)

    @property
    def replies(self) -> ReplyConfig | None:
        """How the model answers; not at all if None."""
        from scopelake.ingest.replies import ReplyConfig

        if self.generate is None:
            return None
        return ReplyConfig(self.generate, self.temperature, self.seed)

    @property
    def config(self) -> InspectionConfig:
        """How firings are ranked and compared."""
        from scopelake.query.inspection_rows import InspectionConfig

        return InspectionConfig(self.k, self.by, self.against)


class Inspector:
    """A model and coders that stay loaded; `Lake.inspector` makes one.

    Args:
        lake: whose corpora prompts are compared with, and where they are kept.
        prompts: the model and coders.
    """

    def __init__(self, lake: LakeHandle, prompts: PromptReader) -> None:
        self._lake, self._prompts, self._empty = lake, prompts, EmptyLakes()

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
        return self.run(
            InspectionRequest(prompt, generate, temperature, seed, k, by, against, keep)
        )

    def run(self, request: InspectionRequest) -> Inspection:
        """Inspect what is asked for."""
        from scopelake.query.connect import connect
        from scopelake.query.inspection_rows import read_inspection

        lake, prompts, keep = self._lake, self._prompts, request.keep
        if keep:
            lake._check_writable()
        with closing(connect(lake._store, lake._snapshot)) as there:
            compared = comparison(lake, there, prompts.coders, request)
            prompts.check(lake._store, request.source, request.replies)
            with nullcontext(lake._store) if keep else self._empty.lake() as store:
                done = prompts.ingest(store, request.source, request.replies, describe=keep)
                if keep:
                    lake.refresh()
                snapshot = lake._snapshot if keep else store.snapshot()
                with closing(connect(store, snapshot)) as connection:
                    return read_inspection(
                        connection, store, snapshot, done.corpus, compared, request.config,
                        prompts.tokenizer.pieces, done.promoted, model=prompts.model.name,
                        errors=done.errors, kept=keep,
                    )  # fmt: skip


def comparison(
    lake: LakeHandle,
    connection: Connection,
    coders: Sequence[CoderFiles],
    request: InspectionRequest,
) -> Comparison:
    """Return what a prompt is compared with; errors are those of `find_comparison`."""
    from scopelake.query.inspection_rows import find_comparison

    names = [coder.name for coder in coders]
    return find_comparison(connection, lake._store, lake._snapshot, names, request.config)
