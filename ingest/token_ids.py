"""Token ids that somebody else made, back to text with roles, turns and kinds.

Where only ids are given, control tokens among them are taken at their word: a turn begins with
``<start_of_turn>``, a role and a newline, and is closed by ``<end_of_turn>``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scopelake.ingest.tokens import BOS, CONTENT, TEMPLATE, TokenizedText, Tokenizer
from scopelake.names import ROLES


class TokenIdReader:
    """Reads rows of ids of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._openings = tokenizer.turn_openings()

    def read(self, ids: npt.NDArray[np.int32]) -> TokenizedText:
        """Return what the tokens `ids` [n_tokens] are; BOS covers no text."""
        is_bos = ids == self._tokenizer.bos_id
        text, found = self._tokenizer.spell(ids[~is_bos].tolist())
        # A BOS begins where the token behind it does.
        all_starts = np.array([*found, len(text)], dtype=np.int64)
        starts = all_starts[np.cumsum(~is_bos) - ~is_bos]
        roles = np.full(len(ids), ROLES.index("none"), dtype=np.int8)
        turns = np.full(len(ids), -1, dtype=np.int32)
        kinds = np.full(len(ids), CONTENT, dtype=np.int8)
        self._mark_turns(ids, roles, turns, kinds)
        kinds[is_bos] = BOS
        return TokenizedText(text, ids, starts, roles, turns, kinds)

    def _mark_turns(
        self,
        ids: npt.NDArray[np.int32],
        roles: npt.NDArray[np.int8],
        turns: npt.NDArray[np.int32],
        kinds: npt.NDArray[np.int8],
    ) -> None:
        begins = self._turns(ids)
        ends = [*(start for start, _ in begins), len(ids)][1:]
        for turn, ((start, role), stop) in enumerate(zip(begins, ends, strict=True)):
            roles[start:stop] = role
            turns[start:stop] = turn
            kinds[start : start + len(self._openings[role])] = TEMPLATE
            closed = np.flatnonzero(ids[start:stop] == self._tokenizer.end_of_turn_id)
            if len(closed):
                kinds[start + closed[0] : stop] = TEMPLATE

    def _turns(self, ids: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
        """Return where turns begin, and their roles."""
        return sorted(
            (start, role)
            for role, opening in self._openings.items()
            for start in np.flatnonzero(ids == opening[0]).tolist()
            if ids[start : start + len(opening)].tolist() == opening
        )
