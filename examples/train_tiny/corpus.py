"""The training and held-out text as flat token arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scopelake import tiny

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT = 256
BOS_ID, EOS_ID = 2, 1
CHAT_REPEATS = 4

Tokens = NDArray[np.int64]


def stdlib_texts(held_out: bool) -> list[str]:
    """Text of the standard library's files on one side of the split."""
    return [path.read_text(encoding="utf-8") for path in tiny.stdlib_files(held_out)]


def chat_rows(split: str) -> list[dict[str, Any]]:
    """The chats of one split, as they lie in the file."""
    lines = tiny.chats_path().read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row for row in rows if row["metadata"]["split"] == split]


def render_chat(messages: list[dict[str, str]]) -> str:
    """A chat as the model's template writes it, without the leading ``<bos>``."""
    lead = ""
    parts: list[str] = []
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "system":
            lead = content + "\n\n"
            continue
        speaker = "user" if message["role"] == "user" else "model"
        parts.append(f"<start_of_turn>{speaker}\n{lead}{content}<end_of_turn>\n")
        lead = ""
    return "".join(parts)


def chat_texts(split: str) -> list[str]:
    """The rendered chats of one split."""
    return [render_chat(row["messages"]) for row in chat_rows(split)]


def flatten(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokens:
    """Encodes each text, ends it with ``<eos>`` and lays all of them end to end."""
    pieces: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        pieces.extend(encoding.ids)
        pieces.append(EOS_ID)
    return np.asarray(pieces, dtype=np.int64)


def rows_of(flat: Tokens, context: int = CONTEXT) -> Tokens:
    """Cuts a flat array into rows of ``context`` tokens, each starting with ``<bos>``."""
    body = context - 1
    count = len(flat) // body
    rows = np.full((count, context), BOS_ID, dtype=np.int64)
    rows[:, 1:] = flat[: count * body].reshape(count, body)
    return rows


def training_tokens(tokenizer: Tokenizer) -> Tokens:
    """The flat training text: standard library files, then the chats several times over."""
    code = flatten(tokenizer, stdlib_texts(held_out=False))
    chats = flatten(tokenizer, chat_texts("train"))
    return np.concatenate([code, np.tile(chats, CHAT_REPEATS)])


def held_out_tokens(tokenizer: Tokenizer) -> Tokens:
    """The flat held-out text, standard library files only."""
    return flatten(tokenizer, stdlib_texts(held_out=True))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The saved tokenizer, without ``transformers``."""
    from tokenizers import Tokenizer as LoadedTokenizer

    return LoadedTokenizer.from_file(str(folder / "tokenizer.json"))
