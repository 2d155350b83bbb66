"""Python values as SQL text."""

from __future__ import annotations

from collections.abc import Sequence


def literal(text: str) -> str:
    """Return `text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def listed(texts: Sequence[str]) -> str:
    """Return `texts` as a SQL list of strings, also when there are none."""
    return f"CAST([{', '.join(map(literal, texts))}] AS VARCHAR[])"
