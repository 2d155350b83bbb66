"""Where tokens begin in a text, from how long each of the vocabulary is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_FIRST_OF_REST, _LAST_OF_REST = 0x80, 0xBF
"""UTF-8's bytes of a character behind its first."""

_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""Gemma's normalizer, which keeps the number of characters."""


class TokenLengths:
    """Lengths, in characters, of a tokenizer's tokens.

    They are known of tokenizers that put nothing into a text and take nothing out of it. A control
    token has none. Of a character that is spelt in bytes each token begins where it does: the first
    one has its length, the others none.

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
        """Of each token; -1 where there is none, 0 of a byte that is not a character's first."""
        vocabulary = self._core.get_vocab(with_added_tokens=True)
        lengths = np.full(max(vocabulary.values()) + 1, -1, dtype=np.int64)
        for token, index in vocabulary.items():
            byte = _BYTE.fullmatch(token)
            if byte is None:
                lengths[index] = len(token)
            else:
                value = int(byte[1], 16)
                lengths[index] = not _FIRST_OF_REST <= value <= _LAST_OF_REST
        for index, added in self._core.get_added_tokens_decoder().items():
            if added.special or added.lstrip or added.rstrip:
                lengths[index] = -1
        return lengths

    def starts(
        self, ids: npt.NDArray[np.int32], n_tokens: Sequence[int], n_characters: Sequence[int]
    ) -> list[npt.NDArray[np.int64] | None]:
        """Return where each token of some texts begins; None for a text of which it is not told.

        Args:
            ids: tokens of all texts, one after the other.
            n_tokens: of each text.
            n_characters: of each text; where the lengths do not add up to it, they do not tell.
        """
        if not self.are_known:
            return [None] * len(n_tokens)
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        unknown = np.flatnonzero(lengths < 0)
        any_ = len(unknown) > 0
        begins = ends - lengths - (lengths == 0)
        found: list[npt.NDArray[np.int64] | None] = []
        at, before = 0, 0
        for own, n in zip(n_tokens, n_characters, strict=True):
            stop = at + own
            last = int(ends[stop - 1]) if stop else 0
            n_unknown = np.searchsorted(unknown, stop) - np.searchsorted(unknown, at) if any_ else 0
            is_known = last - before == n and n_unknown == 0
            found.append(begins[at:stop] - before if is_known else None)
            at, before = stop, last
        return found
