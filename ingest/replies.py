"""Replies: the model's own answer to chats that end with the user, as tokens of kind generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scopelake.errors import InvalidArgumentError
from scopelake.ingest.capture import pad
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.tokens import TokenizedText, Tokenizer
from scopelake.names import check_seed, check_whole

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class ReplyConfig:
    """How replies are written."""

    max_tokens: int
    """Most tokens in a reply, the end of turn included."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of sampling; a chat's reply depends on it and on the chat's place in the corpus alone."""

    def __post_init__(self) -> None:
        if check_whole("generate", self.max_tokens) < 1:
            raise InvalidArgumentError(
                f"generate={self.max_tokens} was asked for; a reply has at least one token; give 1 "
                "or more"
            )
        check_seed(self.seed)
        if not 0.0 <= self.temperature < float("inf"):
            raise InvalidArgumentError(
                f"temperature={self.temperature} was asked for; give 0 (greedy) or more"
            )

    def describe(self, model: str) -> str:
        """Return in words whose replies they are and how they came about."""
        how = (
            f"temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"
        )
        return f"replies of {model} ({how}, at most {self.max_tokens} tokens)"


class Replier:
    """Writes the replies of a corpus, chat after chat."""

    def __init__(self, model: LoadedModel, tokenizer: Tokenizer, config: ReplyConfig) -> None:
        self.model, self.config = model, config
        self._tokenizer = tokenizer
        self._n_written = 0

    def describe(self) -> str:
        """Return in words whose replies they are and how they came about."""
        return self.config.describe(self.model.name)

    def check_length(self, chat: TokenizedText, origin: str) -> None:
        """Refuse a chat that leaves no room for a whole reply in the model's context.

        Raises:
            InvalidArgumentError: as it says.
        """
        n_tokens = len(self._tokenizer.open_turn(chat, 0).token_ids) + self.config.max_tokens
        if n_tokens > self.model.max_positions:
            raise InvalidArgumentError(
                f"{origin} is a chat of {n_tokens} tokens, its reply of at most "
                f"{self.config.max_tokens} included; {self.model.name} takes "
                f"{self.model.max_positions}; shorten it, or generate less"
            )

    def extend(self, chats: Sequence[TokenizedText], turns: Sequence[int]) -> list[TokenizedText]:
        """Return `chats` with the model's turn opened and its reply in it.

        Args:
            chats: each ends with a turn of the user.
            turns: the number of the reply's turn in each.
        """
        opened = [self._tokenizer.open_turn(c, t) for c, t in zip(chats, turns, strict=True)]
        replies = self._generate([chat.token_ids for chat in opened])
        self._n_written += len(chats)
        return [
            self._tokenizer.with_reply(chat, reply, turn)
            for chat, reply, turn in zip(opened, replies, turns, strict=True)
        ]

    def _generate(
        self, prompts: list[np.ndarray[tuple[int], np.dtype[np.int32]]]
    ) -> list[list[int]]:
        lengths = [len(p) + self.config.max_tokens for p in prompts]
        replies: list[list[int]] = [[] for _ in prompts]
        sampled = self.config.temperature > 0
        # Sampled one at a time, so that a reply does not depend on its neighbours in a batch.
        groups = [[i] for i in range(len(prompts))] if sampled else batches(lengths, _BATCH_TOKENS)
        for group in groups:
            if sampled:
                torch.manual_seed(self.config.seed * 1_000_003 + self._n_written + group[0])
            for index, reply in zip(group, self._run([prompts[i] for i in group]), strict=True):
                replies[index] = reply
        return replies

    def _run(self, prompts: list[np.ndarray[tuple[int], np.dtype[np.int32]]]) -> list[list[int]]:
        batch = pad(prompts, "left", self.model.device)
        module, temperature = self.model.module, self.config.temperature
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        ends = set(self._tokenizer.end_ids)
        with torch.inference_mode():
            output = module.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                max_new_tokens=self.config.max_tokens,
                eos_token_id=sorted(ends),
                pad_token_id=0,
                **(options if temperature > 0 else {"do_sample": False}),
            )
        replies = []
        for row in output[:, batch.ids.shape[1] :].tolist():
            stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            replies.append(row[:stop])
        return replies
