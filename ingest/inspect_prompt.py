"""A prompt as a corpus of one context: added, ingested and kept like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scopelake.errors import InvalidArgumentError, ModelError
from scopelake.ingest.activations import LiveActivations
from scopelake.ingest.coders import CoderFiles, check_fits
from scopelake.ingest.corpus import CorpusConfig, add_corpus
from scopelake.ingest.crews import Here
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.pipeline import ingest
from scopelake.ingest.plan import IngestConfig
from scopelake.ingest.replies import Replier, ReplyConfig
from scopelake.ingest.sources import PromptSource
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import Cutting
from scopelake.store.lake_store import LakeStore

_NAME: Final = "inspection"


def inspect_prompt(
    store: LakeStore,
    source: PromptSource,
    model: LoadedModel,
    tokenizer: Tokenizer,
    coders: Sequence[CoderFiles],
    replies: ReplyConfig | None = None,
) -> str:
    """Ingest one prompt and return the name of its corpus, ``inspection-<n>``.

    Args:
        store: the lake.
        source: the prompt.
        model: the model.
        tokenizer: the model's.
        coders: fit the model.
        replies: how the model answers a chat that ends with the user; not at all if None.

    Raises:
        CoderMismatchError: a coder does not fit the model.
        CorpusSourceError: the prompt is empty or no chat.
        InvalidArgumentError: it is longer than the model's context, or a text is to be answered.
        LakeBusyError: other writers came first again and again.
    """
    for coder in coders:
        check_fits(coder, model)
    if replies is not None and not source.chat:
        raise InvalidArgumentError(
            f"generate={replies.max_tokens} was asked for a text; replies belong to chats; give "
            "messages (--chat), or leave generate out"
        )
    _check_length(source, model, tokenizer, 0 if replies is None else replies.max_tokens)
    name = _free_name(store)
    replier = None if replies is None else Replier(model, tokenizer, replies)
    config = CorpusConfig(name, Cutting(model.max_positions))
    add_corpus(store, config, source, tokenizer, replier=replier)
    done = ingest(store, IngestConfig(name), Here(LiveActivations(model)), coders)
    if done.failed:
        raise ModelError(
            f"the prompt was to be inspected with {model.name}; {done.failed[0]}; check the model, "
            "its dtype and the coders"
        )
    return name


def _check_length(
    source: PromptSource, model: LoadedModel, tokenizer: Tokenizer, n_generated: int
) -> None:
    (document,) = source.documents()
    if document.text is None:
        n_tokens = len(tokenizer.encode_chat(document).token_ids)
    else:
        n_tokens = len(tokenizer.encode_texts([document.text])[0].token_ids) + 1
    # The template opens the reply with a few tokens of its own.
    n_tokens += 8 + n_generated if n_generated else 0
    if n_tokens > model.max_positions:
        raise InvalidArgumentError(
            f"a prompt of {n_tokens} tokens was given, its reply included; {model.name} takes "
            f"{model.max_positions}; shorten it, or add it as a corpus, which is cut into contexts"
        )


def _free_name(store: LakeStore) -> str:
    there = set(store.read("corpora", store.snapshot(), ["corpus"])["corpus"].to_pylist())
    names = (f"{_NAME}-{n}" for n in range(1, len(there) + 2))
    return next(name for name in names if name not in there)
