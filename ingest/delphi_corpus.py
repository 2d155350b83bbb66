"""The tokens of a delphi cache as a corpus: a row is a context, its padding cut off."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scopelake.errors import CoderFileError, CorpusExistsError
from scopelake.ingest.delphi_cache import DelphiCache
from scopelake.ingest.digest import digest_text
from scopelake.ingest.documents import Document
from scopelake.ingest.token_ids import TokenIdReader
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import to_table, whole
from scopelake.names import KIND_BOS
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.snapshot import Snapshot
from scopelake.store.writer import write_contexts

_SHARD_TOKENS: Final = 1 << 18
_NO_TOKEN: Final = -1

Progress = Callable[[str, int, int], None]
"""Called with what is read, how much of it, and of how much."""


class CacheCorpus:
    """Contexts by the rows of a cache.

    Args:
        name: of the corpus.
        digest: of the cache's tokens.
        cache: whose tokens they are.
        tokenizer: the one that made the ids.
        folder: for a file of what each token is.
    """

    def __init__(
        self, name: str, digest: str, cache: DelphiCache, tokenizer: Tokenizer, folder: Path
    ) -> None:
        self.name, self._digest, self._cache, self._tokenizer = name, digest, cache, tokenizer
        self.shape = cache.shape
        self.shard_contexts = max(1, _SHARD_TOKENS // self.shape[1])
        self.kinds: npt.NDArray[np.int8] = np.memmap(
            folder / "kinds", np.int8, "w+", shape=self.shape
        )
        """[rows, length], -1 on padding; on disk."""
        self._is_chat = False

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.shard_contexts)

    def first_positions(self, shard: int) -> npt.NDArray[np.int64]:
        """Return for each row of a shard how many tokens of padding it begins with."""
        start = shard * self.shard_contexts
        is_token = self.kinds[start : start + self.shard_contexts] >= 0
        first: npt.NDArray[np.int64] = is_token.argmax(axis=1)
        return first

    def read(self, root: Root | None, receipts: list[Receipt], progress: Progress) -> None:
        """Find what each token is, and write the contexts.

        Args:
            root: the lake's; None: it has them already.
            receipts: to which those of the files are added.
            progress: called with rows done, of how many.

        Raises:
            CoderFileError: a token id is not the tokenizer's.
        """
        reader = TokenIdReader(self._tokenizer)
        row = 0
        for ids in self._cache.token_rows():
            self._check(ids)
            windows = []
            first = row
            self.kinds[row : row + len(ids)] = _NO_TOKEN
            for line in ids:
                start, stop = _extent(line != self._tokenizer.pad_id)
                tokens = reader.read(line[start:stop])
                self._is_chat |= int(tokens.turns.max()) >= 0
                self.kinds[row, start:stop] = tokens.kinds
                document = Document(f"{self.name}/{row}", f"row {row}", text=tokens.text)
                windows.append(whole(document, tokens, row))
                row += 1
            if root is not None:
                table = to_table(windows, self.name, first, bos_id=self._tokenizer.bos_id)
                receipts += write_contexts(root, table, self.name, f"corpus:{self.name}")
            progress("contexts", row, self.shape[0])

    def _check(self, ids: npt.NDArray[np.int32]) -> None:
        if ids.size and not (ids.min() >= 0 and ids.max() < self._tokenizer.n_tokens):
            raise CoderFileError(
                f"{self._cache.path} has token ids {ids.min()} to {ids.max()}; tokenizer "
                f"{self._tokenizer.name} knows {self._tokenizer.n_tokens} tokens; give the one "
                "that made them"
            )

    def row(self, created_at: datetime) -> dict[str, Any]:
        """Return the row of the corpora table."""
        n_rows, length = self.shape
        return {
            "corpus": self.name,
            "source": f"delphi cache of {self._cache.config.get('dataset_repo') or 'no name'}",
            "chat": self._is_chat,
            "tokenizer": self._tokenizer.name,
            "tokenizer_digest": self._tokenizer.digest,
            "chat_template_digest": digest_text(self._tokenizer.chat_template),
            "context_length": length,
            "shard_contexts": self.shard_contexts,
            "n_documents": n_rows,
            "n_split": 0,
            "n_contexts": n_rows,
            "n_tokens": int(np.count_nonzero(self.kinds >= 0)),
            "n_bos": int(np.count_nonzero(self.kinds == KIND_BOS)),
            "source_digest": self._digest,
            "created_at": created_at,
        }


def is_in_lake(
    store: LakeStore, snapshot: Snapshot, name: str, digest: str, tokenizer: Tokenizer
) -> bool:
    """Whether the lake has the corpus of these tokens.

    Raises:
        CorpusExistsError: it has another one of that name.
    """
    columns = ["source_digest", "tokenizer_digest"]
    for row in store.read("corpora", snapshot, columns, [("corpus", "=", name)]).to_pylist():
        if (row["source_digest"], row["tokenizer_digest"]) == (digest, tokenizer.digest):
            return True
        raise CorpusExistsError(
            f"a cache was to be imported into corpus {name!r}; the lake has another one of that "
            "name; choose another name"
        )
    return False


def _extent(is_token: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return where the tokens of a padded row are; one of nothing but padding keeps its first."""
    at = np.flatnonzero(is_token)
    return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 1)
