"""The texts of token ids, from a tokenizer's file alone: nothing is fetched, no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from scopelake.ingest.digest import digest_text

_SPACE: Final = "▁"
"""What SentencePiece writes for a space."""


class Vocabulary:
    """The pieces of a tokenizer.

    Args:
        file: its tokenizer.json.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._core: Any = Tokenizer.from_file(str(file))
        # As a corpus is tokenized, which its digest is of.
        self._core.encode_special_tokens = True
        self._core.no_padding()
        self._core.no_truncation()
        self.digest = digest_text(self._core.to_str())

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, bytes as ``<0x0A>``; of unknown ids ``#id``."""
        pieces = (self._core.id_to_token(int(i)) for i in ids)
        return [
            f"#{i}" if piece is None else piece.replace(_SPACE, " ")
            for i, piece in zip(ids, pieces, strict=True)
        ]


def find_cached_tokenizer(name: str) -> Path | None:
    """Return the tokenizer.json of a hub id that was fetched before, if it was."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # no hub id
        return None
    return Path(found) if isinstance(found, str) else None
