"""The corpus of an examples file: its contexts in the lake, and where its firings lie in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from scopelake.errors import CoderFileError, CorpusExistsError
from scopelake.ingest.digest import digest_text
from scopelake.ingest.documents import Document
from scopelake.ingest.examples import EXAMPLES, Examples, FiringBlock, token_rows
from scopelake.ingest.token_ids import TokenIdReader
from scopelake.ingest.tokens import Tokenizer
from scopelake.ingest.windows import Context, to_table, whole
from scopelake.names import KIND_BOS, check_name
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts

_SHARD_TOKENS: Final = 1 << 18

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a padded rectangle are: row i is context i, its padding cut off."""

    digest: str
    """Of the rectangle."""
    first: npt.NDArray[np.int32]
    """[n_contexts], column of a context's position 0."""
    n_tokens: npt.NDArray[np.int32]
    """[n_contexts]"""
    is_bos: npt.NDArray[np.bool_]
    """[n_contexts, context_length]"""


@dataclass(frozen=True)
class Placed:
    """Firings of a block, by address in the corpus."""

    firings: Firings
    n_on_padding: int
    """Left out."""


def read_grid(examples: Examples, tokenizer: Tokenizer) -> Grid:
    """Read where the tokens are.

    Raises:
        CoderFileError: a token id that the tokenizer does not know.
    """
    state = xxhash.xxh3_128(f"{examples.n_contexts} {examples.context_length}".encode())
    first, n_tokens, is_bos = [], [], []
    for tokens in token_rows(examples):
        state.update(np.ascontiguousarray(tokens).data)
        _check_ids(examples, tokens, tokenizer)
        is_token = tokens != tokenizer.pad_id
        # A context of nothing but padding keeps one token, so that the others keep their numbers.
        is_token[:, 0] |= ~is_token.any(axis=1)
        start = is_token.argmax(axis=1)
        first.append(start)
        n_tokens.append(tokens.shape[1] - is_token[:, ::-1].argmax(axis=1) - start)
        is_bos.append(tokens == tokenizer.bos_id)
    return Grid(
        f"xxh3:{state.hexdigest()}",
        np.concatenate(first).astype(np.int32),
        np.concatenate(n_tokens).astype(np.int32),
        np.concatenate(is_bos),
    )


def place(examples: Examples, grid: Grid, block: FiringBlock) -> Placed:
    """Return a block's firings by context and position; what is 0 is none.

    Raises:
        CoderFileError: an activation is negative, not finite, out of order or outside the corpus.
    """
    if not (np.isfinite(block.activations).all() and (block.activations >= 0).all()):
        raise CoderFileError(
            f"{examples.file} has activations that are negative or not finite; fetch it again"
        )
    if unsorted := np.flatnonzero((np.diff(block.activations, axis=1) > 0).any(axis=1)).tolist():
        raise CoderFileError(
            f"{examples.file} has activations out of order, first those of feature "
            f"{block.first_feature + unsorted[0]}; they are published strongest first; fetch it "
            "again"
        )
    row, column = np.nonzero(block.activations)
    context, place = block.contexts[row, column], block.columns[row, column]
    inside = (context >= 0) & (context < len(grid.first))
    inside &= (place >= 0) & (place < grid.is_bos.shape[1])
    if not inside.all():
        raise CoderFileError(
            f"{examples.file} has firings outside its corpus of {len(grid.first)} contexts of "
            f"{grid.is_bos.shape[1]} tokens; fetch it again"
        )
    position = place - grid.first[context]
    keep = (position >= 0) & (position < grid.n_tokens[context])
    row, column, context, place = row[keep], column[keep], context[keep], place[keep]
    kind = np.where(grid.is_bos[context, place], np.int8(KIND_BOS), np.int8(0))
    return Placed(
        Firings(
            context,
            position[keep].astype(np.int32),
            (block.first_feature + row).astype(np.int32),
            block.activations[row, column],
            kind.astype(np.int8),
        ),
        int(np.count_nonzero(~keep)),
    )


def choose_corpus(
    store: LakeStore, examples: Examples, grid: Grid, tokenizer: Tokenizer, name: str | None
) -> tuple[str, bool]:
    """Return the name of the corpus with these tokens, and whether the lake has it.

    Args:
        store: the lake.
        examples: whose corpus it is.
        grid: of `examples`.
        tokenizer: the one that made the ids.
        name: of the corpus; by default that of one with these tokens, or a new one.

    Raises:
        CorpusExistsError: the lake has another corpus of that name.
    """
    columns = ["corpus", "source_digest", "tokenizer_digest"]
    rows = store.read("corpora", store.snapshot(), columns).to_pylist()
    there: dict[str, tuple[str, str]] = {
        r["corpus"]: (r["source_digest"], r["tokenizer_digest"]) for r in rows
    }
    same = [corpus for corpus, key in there.items() if key == (grid.digest, tokenizer.digest)]
    if name is None and same:
        return min(same), True
    if name is None:
        base = f"{examples.identity.repo}-examples"
        names = [base, *(f"{base}-{n}" for n in range(2, len(there) + 2))]
        return check_name("corpus", next(n for n in names if n not in there)), False
    if name in there and name not in same:
        raise CorpusExistsError(
            f"the examples of {examples.name} were to go into corpus {name!r}; the lake has "
            "another one of that name; choose another name, or leave it out"
        )
    return check_name("corpus", name), name in same


def write_corpus(
    root: Root,
    examples: Examples,
    grid: Grid,
    tokenizer: Tokenizer,
    name: str,
    receipts: list[Receipt],
    progress: Progress,
) -> pa.Table:
    """Write the corpus's contexts, adding to `receipts`; return its row of the corpora table."""
    n_contexts, is_chat = 0, False
    for windows in _windows(examples, grid, tokenizer, name):
        is_chat |= any(int(w[0].tokens.turns.max()) >= 0 for w in windows)
        table = to_table(windows, name, n_contexts, bos_id=tokenizer.bos_id)
        receipts += write_contexts(root, table, corpus=name, run=f"corpus:{name}")
        n_contexts += len(windows)
        progress(name, n_contexts, examples.n_contexts)
    row = _corpus_row(examples, grid, tokenizer, name, is_chat)
    return pa.Table.from_pylist([row], schema=SCHEMAS["corpora"])


def _windows(
    examples: Examples, grid: Grid, tokenizer: Tokenizer, name: str
) -> Iterator[list[Context]]:
    reader = TokenIdReader(tokenizer)
    context = 0
    for rows in token_rows(examples):
        windows = []
        for ids in rows:
            start, n_tokens = int(grid.first[context]), int(grid.n_tokens[context])
            tokens = reader.read(ids[start : start + n_tokens])
            document = Document(f"{name}/{context}", f"row {context}", text=tokens.text)
            windows.append(whole(document, tokens, context))
            context += 1
        yield windows


def _check_ids(examples: Examples, tokens: npt.NDArray[np.int32], tokenizer: Tokenizer) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= tokenizer.n_tokens:
        raise CoderFileError(
            f"{examples.file} has token ids {low} to {high}; tokenizer {tokenizer.name} knows "
            f"{tokenizer.n_tokens} tokens; give the tokenizer of a Gemma 3"
        )


def _corpus_row(
    examples: Examples, grid: Grid, tokenizer: Tokenizer, name: str, is_chat: bool
) -> dict[str, Any]:
    position = np.arange(examples.context_length) - grid.first[:, None]
    is_inside = (position >= 0) & (position < grid.n_tokens[:, None])
    return {
        "corpus": name,
        "source": f"{EXAMPLES} of {examples.name}",
        "chat": is_chat,
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer.digest,
        "chat_template_digest": digest_text(tokenizer.chat_template),
        "context_length": examples.context_length,
        "shard_contexts": max(1, _SHARD_TOKENS // examples.context_length),
        "n_documents": examples.n_contexts,
        "n_split": 0,
        "n_contexts": examples.n_contexts,
        "n_tokens": int(grid.n_tokens.sum()),
        "n_bos": int(np.count_nonzero(grid.is_bos & is_inside)),
        "source_digest": grid.digest,
        "created_at": datetime.now(UTC),
    }
