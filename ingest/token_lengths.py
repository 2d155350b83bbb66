"""Where tokens begin in a text, from how long each of the vocabulary is."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""Gemma's normalizer, which keeps the number of characters."""


class TokenLengths:
    """Lengths, in characters, of a tokenizer's tokens.

    They are known of tokenizers that put nothing into a text and take nothing out of it. A token
    that is a byte of a character, or a control token, has none.

    Args:
        core: the tokenizer, of the package ``tokenizers``.
    """

    def __init__(self, core: Any) -> None:  # noqa: ANN401
        self._core = core

    @cached_property
    def are_known(self) -> bool:
        """Whether the tokenizer is such a one."""
        said = json.loads(self._core.to_str())
        return said["normalizer"] in (None, _SPACES) and said["model"]["type"] == "BPE"

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        vocabulary = self._core.get_vocab(with_added_tokens=True)
        lengths = np.full(max(vocabulary.values()) + 1, -1, dtype=np.int64)
        for token, index in vocabulary.items():
            if not _BYTE.fullmatch(token):
                lengths[index] = len(token)
        for index, added in self._core.get_added_tokens_decoder().items():
            if added.special or added.lstrip or added.rstrip:
                lengths[index] = -1
        return lengths

    def starts(self, ids: npt.NDArray[np.int32], n_characters: int) -> npt.NDArray[np.int64] | None:
        """Return where each token begins; None where the lengths do not tell.

        Args:
            ids: tokens of a text.
            n_characters: of the text; what the lengths do not add up to, they do not tell.
        """
        if not self.are_known:
            return None
        lengths = self._lengths[ids]
        if len(ids) == 0 or lengths.min() < 0 or int(lengths.sum()) != n_characters:
            return None
        ends = np.cumsum(lengths)
        return ends - lengths
