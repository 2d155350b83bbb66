"""Prompts, one after another: each is added, ingested and kept like any other corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from scopelake.errors import CorpusExistsError, InvalidArgumentError, ModelError
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.coders import CoderFiles, check_fits
from scopelake.ingest.corpus import CorpusConfig, add_corpus
from scopelake.ingest.crews import Here, Loaded
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.pipeline import ingest
from scopelake.ingest.plan import IngestConfig, check_catalogue
from scopelake.ingest.prompt_errors import RecordedActivations, prompt_errors
from scopelake.ingest.replies import Replier, ReplyConfig
from scopelake.ingest.sources import PromptSource
from scopelake.ingest.statistics import weight_columns
from scopelake.ingest.stored_weights import stored_weight_columns
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import Cutting
from scopelake.store.lake_store import LakeStore

_NAME: Final = "inspection"


@dataclass(frozen=True)
class IngestedPrompt:
    """A prompt that is a corpus of one context now."""

    corpus: str
    errors: pa.Table
    """As in `prompt_errors`."""
    promoted: Mapping[str, pa.Array]
    """By SAE the ids of the tokens that each feature's decoder promotes; null where none are
    known."""


class PromptReader:
    """A model, its tokenizer and coders in memory.

    Args:
        model: the model.
        tokenizer: the model's.
        coders: fit the model.

    Raises:
        CoderMismatchError: a coder does not fit the model.
        CoderFileError: a coder's weights are no such weights.
    """

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer, coders: Sequence[CoderFiles]
    ) -> None:
        for coder in coders:
            check_fits(coder, model)
        self.model, self.tokenizer, self.coders = model, tokenizer, tuple(coders)
        self._loaded = Loaded({c.name: load_encoders(c, model.device) for c in coders})
        read = {site for c in coders for site in (*c.targets, *(c.sites if c.affine else ()))}
        self._targets = tuple(sorted(read, key=str))

    def check(
        self, store: LakeStore, source: PromptSource, replies: ReplyConfig | None = None
    ) -> None:
        """Refuse what `ingest` could not do, before anything is written.

        What the lake has of the coders' weights is taken over, so that it is not computed again.

        Raises:
            CoderMismatchError: a name in the lake stands for another model or coder.
            CorpusSourceError: the prompt is empty or no chat.
            InvalidArgumentError: it is longer than the model's context.
        """
        snapshot = store.snapshot()
        check_catalogue(store, snapshot, _free_name(store), self.model, self.coders)
        unknown = [c for c in self.coders if c.name not in self._loaded.columns]
        if unknown:
            self._loaded.columns.update(stored_weight_columns(store, snapshot, unknown, self.model))
        self._check_length(source, 0 if replies is None else replies.max_tokens)

    def ingest(
        self,
        store: LakeStore,
        source: PromptSource,
        replies: ReplyConfig | None = None,
        *,
        describe: bool = True,
    ) -> IngestedPrompt:
        """Ingest one prompt as a corpus ``inspection-<n>``.

        Args:
            store: the lake that it goes to.
            source: the prompt, checked.
            replies: how the model answers a chat that ends with the user; not at all if None.
            describe: as in `pipeline.ingest`.

        Raises:
            ModelError: the model or a coder failed.
            LakeBusyError: other writers came first again and again.
        """
        name = self._add(store, source, replies)
        recorded = RecordedActivations(self.model, targets=self._targets)
        self._say_what_weights_say(recorded)
        done = ingest(
            store, IngestConfig(name), Here(recorded, self._loaded), self.coders, describe=describe
        )
        if done.failed:
            raise ModelError(
                f"the prompt was to be inspected with {self.model.name}; {done.failed[0]}; check "
                "the model, its dtype and the coders"
            )
        snapshot, of = store.snapshot(), [("corpus", "=", name)]
        firings = store.read("codes", snapshot, ["sae", "position", "feature", "activation"], of)
        (kinds,) = store.read("contexts", snapshot, ["kinds"], of)["kinds"].to_pylist()
        errors = prompt_errors(self.coders, recorded.seen, firings, np.array(kinds, np.int8))
        columns = self._loaded.columns
        promoted = {c.name: columns[c.name]["top_tokens"] for c in self.coders}
        return IngestedPrompt(name, errors, promoted)

    def _say_what_weights_say(self, source: RecordedActivations) -> None:
        """Compute, once, the columns of features that follow from the weights alone."""
        columns = self._loaded.columns
        if unknown := [c for c in self.coders if c.name not in columns]:
            readout = source.readout()
            columns.update((c.name, weight_columns(c, source.device, readout)) for c in unknown)

    def _add(self, store: LakeStore, source: PromptSource, replies: ReplyConfig | None) -> str:
        cutting = Cutting(self.model.max_positions)
        while True:
            name = _free_name(store)
            replier = None if replies is None else Replier(self.model, self.tokenizer, replies)
            try:
                add_corpus(
                    store, CorpusConfig(name, cutting), source, self.tokenizer, replier=replier
                )
            except CorpusExistsError:
                continue  # somebody else has inspected a prompt meanwhile
            return name

    def _check_length(self, source: PromptSource, n_generated: int) -> None:
        (document,) = source.documents()
        if document.text is None:
            n_tokens = len(self.tokenizer.encode_chat(document).token_ids)
        else:
            n_tokens = len(self.tokenizer.encode_texts([document.text])[0].token_ids) + 1
        # The template opens the reply with a few tokens of its own.
        n_tokens += 8 + n_generated if n_generated else 0
        if n_tokens > self.model.max_positions:
            raise InvalidArgumentError(
                f"a prompt of {n_tokens} tokens was given, its reply included; {self.model.name} "
                f"takes {self.model.max_positions}; shorten it, or add it as a corpus, which is "
                "cut into contexts"
            )


def _free_name(store: LakeStore) -> str:
    there = set(store.read("corpora", store.snapshot(), ["corpus"])["corpus"].to_pylist())
    names = (f"{_NAME}-{n}" for n in range(1, len(there) + 2))
    return next(name for name in names if name not in there)
