"""From token ids to the text they spell, and where in it each token begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, groupby
from os.path import commonprefix
from typing import Any, Final

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class Speller:
    """Spells token ids fast: each token's text is looked up, runs of byte tokens apart."""

    def __init__(self, core: Any) -> None:  # noqa: ANN401
        self._core = core
        self._pieces: dict[int, str | int] = {}
        """By token its text, or the byte that it stands for."""

    def spell(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """Return the text of `ids` and the offset of each in it, in characters.

        Offsets never descend. Bytes of one character begin where it begins.
        """
        pieces: list[str] = []
        starts: list[int] = []
        offset = 0
        for is_byte, group in groupby(ids, self._is_byte):
            if is_byte:
                text, inner = _spell_bytes([int(self._pieces[i]) for i in group])
                pieces.append(text)
                starts += [offset + i for i in inner]
                offset += len(text)
                continue
            spelled = [str(self._pieces[i]) for i in group]
            pieces += spelled
            ends = list(accumulate(map(len, spelled), initial=offset))
            starts += ends[:-1]
            offset = ends[-1]
        text = "".join(pieces)
        # A decoder that strips or merges across tokens spells otherwise than token by token.
        if text != self._core.decode(list(ids), skip_special_tokens=False):
            return spell_by_prefix(self._core, ids)
        return text, starts

    def _is_byte(self, token_id: int) -> bool:
        if token_id not in self._pieces:
            byte = _BYTE.match(self._core.id_to_token(token_id) or "")
            self._pieces[token_id] = (
                int(byte[1], 16)
                if byte
                else self._core.decode([token_id], skip_special_tokens=False)
            )
        return isinstance(self._pieces[token_id], int)


def spell_by_prefix(core: Any, ids: Sequence[int]) -> tuple[str, list[int]]:  # noqa: ANN401
    """Return what `Speller.spell` does, of any decoder, in time quadratic in the tokens.

    A token begins where the prefix before it is settled. Offsets within a run of bytes that is no
    text may differ.
    """
    given = list(ids)
    text = core.decode(given, skip_special_tokens=False)
    prefixes = (core.decode(given[:i], skip_special_tokens=False) for i in range(len(given)))
    # Bytes of an unfinished character spell signs that the text does not have.
    settled = (len(commonprefix([prefix, text])) for prefix in prefixes)
    return text, list(accumulate(settled, max))


def _spell_bytes(values: Sequence[int]) -> tuple[str, list[int]]:
    """Spell a run of bytes: characters if it is UTF-8 as a whole, else a sign for each byte."""
    try:
        text = bytes(values).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(values), list(range(len(values)))
    return text, [i for i, character in enumerate(text) for _ in character.encode()]
