"""Text of corpora searched: by substring or regular expression, each match with its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import counted
from scopelake.query.connect import Connection
from scopelake.query.context_rows import check_window
from scopelake.query.matches import Matches, match_table
from scopelake.query.rank_contexts import WHERE_COLUMNS
from scopelake.query.snapshot_files import whole_tables
from scopelake.query.sql import check_predicate, run
from scopelake.query.views import PRIVATE, token_columns
from scopelake.query.windows import Key, Span, context_texts
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

Progress = Callable[[int, int], None]
"""Called with contexts that were searched, and contexts in all."""

SEARCH_COLUMNS: Final = tuple(c for c in WHERE_COLUMNS if c != "activation")
"""Columns that a `where` may use, of the first token of a match."""

_AT_ONCE: Final = 8_000_000
"""Tokens that a query looks through: between two of them progress is said."""

_TEXTS: Final = 500
"""Contexts whose texts are read at once: the first matches need few."""

_MARKS: Final = tuple((chr(0xF8F0 + i), chr(0xF8F8 + i)) for i in range(8))
"""Of Unicode's private characters, which stand for nothing: a pair that no text has is taken."""


@dataclass(frozen=True)
class Search:
    """What is looked for, and where.

    Raises:
        InvalidArgumentError: the pattern is empty, or `k` is below 1.
        QueryError: `where` is not one predicate.
    """

    pattern: str
    regex: bool = False
    """Whether it is a regular expression (RE2's), not a text."""
    ignore_case: bool = False
    corpus: str | None = None
    """None: all."""
    where: str | None = None
    """SQL predicate that the first token of a match must meet, over `SEARCH_COLUMNS`."""
    k: int | None = 100
    """At most so many matches are returned, the first; all are counted. None: all."""

    def __post_init__(self) -> None:
        if not self.pattern:
            raise InvalidArgumentError(
                "an empty text was searched for; it is everywhere; give a character or more"
            )
        if self.k is not None and self.k < 1:
            raise InvalidArgumentError(
                f"k={self.k} was asked for; k is a number of matches; give 1 or more, or None "
                "for all"
            )
        if self.where is not None:
            check_predicate(self.where)

    @property
    def is_plain(self) -> bool:
        """Whether it is looked for as it is spelt."""
        return not (self.regex or self.ignore_case)

    @property
    def expression(self) -> str:
        """The regular expression that finds it."""
        spelt = self.pattern if self.regex else _quoted(self.pattern)
        return f"(?i){spelt}" if self.ignore_case else spelt


@dataclass(frozen=True)
class _Part:
    """Contexts [start, stop) of a corpus."""

    corpus: str
    start: int
    stop: int


def search(
    connection: Connection,
    store: LakeStore,
    snapshot: Snapshot,
    asked: Search,
    *,
    window: int = 16,
    progress: Progress | None = None,
) -> Matches:
    """Return where a text or a regular expression is, and how often.

    Matches lie within one context, do not overlap, and have a character at least.

    Args:
        connection: from `connect`.
        store: the lake.
        snapshot: what of it is read.
        asked: what is looked for, and where.
        window: tokens shown on either side of a match, 0 or more.
        progress: called as the search goes on.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        InvalidArgumentError: the regular expression is none, or `window` is below 0.
        QueryError: `where` fails.
    """
    check_window(window)
    if asked.corpus is not None:
        connection.coverage.check_corpus(asked.corpus)
    _check_expression(connection, asked)
    parts = list(_parts(store, snapshot, asked.corpus))
    n_all = sum(part.stop - part.start for part in parts)
    spans: list[tuple[Key, Span]] = []
    n_matches = n_contexts = n_done = 0
    for part in parts:
        found: Mapping[Key, int] = _counts(connection, asked, part)
        left = None if asked.k is None else asked.k - len(spans)
        if asked.where is None:
            spans += islice(_all_characters(connection, asked, list(found)), left)
        else:
            meeting = _meeting(connection, asked, part, list(found))
            found = Counter(key for key, _ in meeting)
            spans += meeting[:left]
        n_matches, n_contexts = n_matches + sum(found.values()), n_contexts + len(found)
        n_done += part.stop - part.start
        if progress is not None:
            progress(n_done, n_all)
    table = match_table(connection, spans, window)
    note = _note(store, snapshot, asked.corpus)
    return Matches(asked.pattern, table, n_matches, n_contexts, note)


def _quoted(text: str) -> str:
    """Return a regular expression of RE2 that is met by a text as it is spelt."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in text)


def _check_expression(connection: Connection, asked: Search) -> None:
    if not asked.regex:
        return
    try:
        run(connection, "SELECT regexp_matches('', ?)", [asked.expression], {})
    except QueryError as error:
        raise InvalidArgumentError(
            f"regular expression {asked.pattern!r} was asked for; it is none ({error}); mend it, "
            "or search for it as text"
        ) from error


def _parts(store: LakeStore, snapshot: Snapshot, corpus: str | None) -> Iterator[_Part]:
    columns = ["corpus", "n_tokens", *NUMBER_COLUMNS]
    for row in store.read("corpora", snapshot, columns).sort_by("corpus").to_pylist():
        if corpus not in (None, row["corpus"]):
            continue
        length = max(1, row["n_tokens"] // max(row["n_contexts"], 1))
        step = max(1, _AT_ONCE // length)
        for start, stop in ContextNumbers.of(row).ranges:
            for at in range(start, stop, step):
                yield _Part(row["corpus"], at, min(at + step, stop))


def _counts(connection: Connection, asked: Search, part: _Part) -> dict[Key, int]:
    """Return the number of matches in each context that has any, in order."""
    if asked.is_plain:
        pattern, is_there = asked.pattern, "contains(text, $1)"
        count = "(length(text) - length(replace(text, $1, ''))) // length($1)"
    else:
        pattern, is_there = asked.expression, "regexp_matches(text, $1)"
        count = _count_of_marked()
    query = (
        f"SELECT context, {count} AS n FROM {PRIVATE}.contexts "
        f"WHERE corpus = $2 AND context >= $3 AND context < $4 AND {is_there} ORDER BY context"
    )
    values = [pattern, part.corpus, part.start, part.stop]
    rows = run(connection, query, values, {"contexts": [("corpus", "=", part.corpus)]})
    pairs = zip(rows["context"].to_pylist(), rows["n"].to_pylist(), strict=True)
    found = {(part.corpus, context): n for context, n in pairs if n != 0}
    unknown = [key for key, n in found.items() if n is None]
    counted_here = Counter(key for key, _ in _all_characters(connection, asked, unknown))
    every = {key: counted_here[key] if n is None else n for key, n in found.items()}
    return {key: n for key, n in every.items() if n}


def _count_of_marked() -> str:
    """SQL of how many matches with a character a text has; null of a text that has a mark itself.

    Each match is put between two marks. (DuckDB's regexp_extract_all breaks off at matches without
    a character that are within one.)
    """
    first, last = (f"chr({ord(mark)})" for mark in _MARKS[0])
    marked = f"regexp_replace(text, $1, {first} || '\\0' || {last}, 'g')"
    without = f"replace({marked}, {first} || {last}, '')"  # less those of no character
    return (
        f"CASE WHEN contains(text, {first}) OR contains(text, {last}) THEN NULL "
        f"ELSE (length({without}) - length(text)) // 2 END"
    )


def _all_characters(
    connection: Connection, asked: Search, keys: list[Key]
) -> Iterator[tuple[Key, Span]]:
    """Yield the matches in contexts, reading the texts of some at a time."""
    for i in range(0, len(keys), _TEXTS):
        yield from _characters(connection, asked, keys[i : i + _TEXTS])


def _characters(
    connection: Connection, asked: Search, keys: list[Key]
) -> Iterator[tuple[Key, Span]]:
    """Yield the matches in contexts, as characters [start, stop) of their texts."""
    texts = context_texts(connection, keys)
    if asked.is_plain:
        for key in keys:
            text, at = texts[key].text, 0
            while (at := text.find(asked.pattern, at)) >= 0:
                yield key, (at, at + len(asked.pattern))
                at += len(asked.pattern)
        return
    plain = [texts[key].text for key in keys]
    first, last = _marks(plain)
    marked = run(
        connection,
        "SELECT regexp_replace(unnest($1::VARCHAR[]), $2, $3, 'g') AS text",
        [plain, asked.expression, f"{first}\\0{last}"],
        {},
    )
    for key, text in zip(keys, marked["text"].to_pylist(), strict=True):
        at = 0  # characters of the text that come before
        for i, piece in enumerate(text.split(first)):
            inside, _, after = piece.partition(last) if i else ("", "", piece)
            if inside:
                yield key, (at, at + len(inside))
            at += len(inside) + len(after)


def _marks(texts: list[str]) -> tuple[str, str]:
    """Return two characters that no text has."""
    for first, last in _MARKS:
        if not any(first in text or last in text for text in texts):
            return first, last
    raise QueryError(
        f"a regular expression was searched for; texts have all of U+{ord(_MARKS[0][0]):X} to "
        f"U+{ord(_MARKS[-1][1]):X}, one pair of which must be free; search for a text"
    )


def _meeting(
    connection: Connection, asked: Search, part: _Part, keys: list[Key]
) -> list[tuple[Key, Span]]:
    """Return the matches in contexts whose first token meets the predicate."""
    found = list(_all_characters(connection, asked, keys))
    if not found:
        return []
    texts = context_texts(connection, list(dict.fromkeys(key for key, _ in found)))
    tokens = [(key[1], texts[key].tokens(*span)[0]) for key, span in found]
    firings = (
        "SELECT $1 AS corpus, unnest($2::BIGINT[]) AS context, unnest($3::INTEGER[]) AS position, "
        "CAST(NULL AS FLOAT) AS activation"
    )
    query = (
        f"SELECT DISTINCT context, position FROM (SELECT * EXCLUDE (activation) FROM "
        f"({token_columns(firings)})) WHERE (\n{asked.where}\n)"
    )
    if "(" in (asked.where or ""):
        connection.make_macros()
    reads = {"contexts": [("corpus", "=", part.corpus)], **whole_tables(asked.where or "")}
    values: list[Any] = [part.corpus, [c for c, _ in tokens], [p for _, p in tokens]]
    try:
        rows = run(connection, query, values, reads)
    except QueryError as error:
        if "column" not in str(error):
            raise
        raise QueryError(f"{error}; columns of where are {', '.join(SEARCH_COLUMNS)}") from error
    meets = set(zip(rows["context"].to_pylist(), rows["position"].to_pylist(), strict=True))
    return [span for span, token in zip(found, tokens, strict=True) if token in meets]


def _note(store: LakeStore, snapshot: Snapshot, corpus: str | None) -> str:
    rows = store.read("corpora", snapshot, ["corpus", "n_split"]).to_pylist()
    n = sum(row["n_split"] or 0 for row in rows if corpus in (None, row["corpus"]))
    if not n:
        return ""
    return f"{counted(n, 'document')} cut into contexts: what two of them share is not found"
