"""Digests of files: what a model, tokenizer or coder is, independent of where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash


def digest_files(paths: Iterable[Path]) -> str:
    """Return ``xxh3:<32 hex>`` over the names and bytes of `paths`, in the order of their names."""
    state = xxhash.xxh3_128()
    for path in sorted(paths, key=lambda p: p.name):
        state.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                state.update(block)
    return f"xxh3:{state.hexdigest()}"


def digest_text(text: str) -> str:
    """Return ``xxh3:<32 hex>`` of `text` as UTF-8."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode())}"
