"""Sets of tokens that are compared: what names one, and which tokens and documents are in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.names import KIND_BOS, KINDS, check_text, counted
from scopelake.query.connect import Connection
from scopelake.query.document_windows import DocumentTest, Windows, place_windows
from scopelake.query.limits import explained
from scopelake.query.literals import literal
from scopelake.query.rank_contexts import WHERE_COLUMNS
from scopelake.query.refusals import check_fixed
from scopelake.query.snapshot_files import whole_tables
from scopelake.query.sql import check_predicate
from scopelake.query.views import PRIVATE, token_rows
from scopelake.store.keeping import Keep

if TYPE_CHECKING:
    import duckdb

Ints = npt.NDArray[np.int64]

TOKEN_COLUMNS: Final = tuple(name for name in WHERE_COLUMNS if name != "activation")
"""Columns that the `where` of a set may use."""


@dataclass(frozen=True)
class TokenSet:
    """Tokens of a lake, and the coder whose firings on them count; BOS is never in a set.

    Raises:
        InvalidArgumentError: a part is no text.
        QueryError: `where` is not one predicate.
    """

    where: str | None = None
    """SQL predicate over `TOKEN_COLUMNS`; None: all tokens."""
    corpus: str | None = None
    """Only of this corpus; None: of every one on which all firings are known."""
    model: str | None = None
    """Of the coders asked for those of this model: its name, or an ending of it."""
    sae: str | None = None
    """Of the coders asked for this one: its name, or a unique ending of it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_text(name, value)
        if self.where is not None:
            check_predicate(self.where)
            check_fixed(self.where)

    def __str__(self) -> str:
        parts = [" ".join(self.where.split())] if self.where is not None else []
        parts += [
            f"{name} {value}"
            for name, value in vars(self).items()
            if name != "where" and value is not None
        ]
        return ", ".join(parts) or "all tokens"


def as_token_set(what: str, given: object) -> TokenSet:
    """Return a set that is given as one, or as its `where`.

    Raises:
        InvalidArgumentError: it is neither.
        QueryError: it is text, but not one predicate.
    """
    if isinstance(given, TokenSet):
        return given
    if isinstance(given, str):
        return TokenSet(given)
    raise InvalidArgumentError(
        f"{what}={given!r} was asked for; it is of type {type(given).__name__}; give a SQL "
        "predicate, or a TokenSet"
    )


def check_unit(unit: str | None) -> None:
    """Refuse what is not one SQL expression.

    Raises:
        QueryError: it is not, or reads something else than the lake.
    """
    if unit is None:
        return
    try:
        check_predicate(check_text("unit", unit))
    except QueryError as error:
        raise QueryError(
            f"unit {unit!r} was asked for; it is not one SQL expression; give one such as "
            "metadata ->> 'prompt'"
        ) from error
    check_fixed(unit)


@dataclass(frozen=True)
class Side:
    """A set, and where its tokens are looked for."""

    asked: TokenSet
    corpora: Mapping[str, Keep]
    """By name what is kept of their documents."""

    @property
    def condition(self) -> str:
        """SQL of whether a token is in the set."""
        where = "" if self.asked.where is None else f" AND (\n{self.asked.where}\n)"
        return f"coalesce(corpus IN ({_listed(self.corpora)}){where}, false)"


@dataclass(frozen=True)
class Tokens:
    """The tokens of both sets, in a table ``tokens`` of a cursor: corpus, context, position, part
    (twice the document's number, and 1 more in b), tested (whether it is in the window)."""

    cursor: duckdb.DuckDBPyConnection
    n_tokens: Ints
    """Of each document in a and b, [documents, 2]."""
    windows: Windows
    n_lost: int
    """Contexts of which firings are not kept, and which are therefore in no set."""


@contextmanager
def token_table(
    connection: Connection,
    sides: tuple[Side, Side],
    reads: Mapping[str, Any],
    *,
    may_overlap: bool,
    unit: str | None,
    test: DocumentTest | None,
    seed: int,
) -> Iterator[Tokens]:
    """Make the table of the tokens of both sets, for as long as it is used.

    Args:
        connection: from `connect`.
        sides: sets a and b.
        reads: what will be read besides, as `Connection.session` takes it.
        may_overlap: whether a token may be in both.
        unit: SQL of what stands for a token's document, over `TOKEN_COLUMNS`, in all corpora;
            None: its document.
        test: as `place_windows` takes it; so is seed.
        seed: see test.

    Raises:
        InvalidArgumentError: a set is empty, or both have tokens in common.
        QueryError: a `where` fails.
        DamagedFileError: a file that is read is not what was written.
    """
    corpora = sorted({name for side in sides for name in side.corpora})
    wheres = [text for text in (sides[0].asked.where, sides[1].asked.where, unit) if text]
    if any("(" in where for where in wheres):
        connection.make_macros()
    reads = {"contexts": [("corpus", "in", corpora)], **reads}
    for where in wheres:
        reads |= whole_tables(where)
    cursor = connection.session(reads)
    try:
        with explained(None):
            n_lost = _mark(cursor, sides, unit)
            if not may_overlap:
                _check_disjoint(cursor)
            n_tokens = _documents(cursor)
            _check_filled(n_tokens, sides, n_lost)
            windows = place_windows(n_tokens, test, seed)
            _place(cursor, n_tokens, windows)
        yield Tokens(cursor, n_tokens, windows, n_lost)
    finally:
        cursor.close()


def _mark(cursor: duckdb.DuckDBPyConnection, sides: tuple[Side, Side], unit: str | None) -> int:
    """Make the table ``marked``: every token that is in a set, in which, and its document.

    Returns:
        Contexts of which firings are not kept, and which are therefore in no set.
    """
    keeps: dict[str, Keep] = {}
    for name, keep in (item for side in sides for item in side.corpora.items()):
        # Documents are kept by a hash of their id: those of the lower share are in the higher.
        keeps[name] = min(keep, keeps.get(name, keep), key=lambda k: k.share)
    kept = {name: keep for name, keep in keeps.items() if not keep.is_all}
    n_lost = _keep_whole(cursor, kept) if kept else 0
    condition = f"corpus IN ({_listed(keeps)})"
    if kept:
        whole = "(corpus, context) IN (SELECT corpus, context FROM whole)"
        condition += f" AND (corpus NOT IN ({_listed(kept)}) OR {whole})"
    a, b = (side.condition for side in sides)
    home = (
        "corpus AS home, document" if unit is None else f"'' AS home, CAST((\n{unit}\n) AS VARCHAR)"
    )
    query = (
        "CREATE TEMP TABLE marked AS SELECT * FROM (SELECT corpus, context, position, "
        f"{home} AS document, {a} AS in_a, {b} AS in_b FROM ({token_rows(condition)}) "
        f"WHERE kind <> {literal(KINDS[KIND_BOS])}) WHERE in_a OR in_b"
    )
    try:
        with explained(None):
            cursor.execute(query)
    except QueryError as error:
        if "column" not in str(error):
            raise
        raise QueryError(
            f"{error}; columns of a set of tokens are {', '.join(TOKEN_COLUMNS)}"
        ) from error
    return n_lost


def _check_disjoint(cursor: duckdb.DuckDBPyConnection) -> None:
    (found,) = cursor.execute("SELECT count(*) FROM marked WHERE in_a AND in_b").fetchall()
    if found[0]:
        raise InvalidArgumentError(
            f"sets a and b were to be compared; {counted(found[0], 'token')} of them "
            f"{'is' if found[0] == 1 else 'are'} in both; give sets without a token in common"
        )


def _keep_whole(cursor: duckdb.DuckDBPyConnection, kept: Mapping[str, Keep]) -> int:
    """Make the table ``whole`` of the contexts whose firings are kept; return how many are not.

    Args:
        cursor: of the session.
        kept: by corpus of which not all are, what is.
    """
    # Of a packed context its first document decides, as in an ingest.
    rows = cursor.execute(
        "SELECT corpus, context, coalesce(document, documents[1].document) AS document "
        f"FROM {PRIVATE}.contexts WHERE corpus IN ({_listed(kept)})"
    ).to_arrow_table()
    names = zip(rows["corpus"].to_pylist(), rows["document"].to_pylist(), strict=True)
    has = [kept[corpus].has(document) for corpus, document in names]
    cursor.register("kept_contexts", rows.select(["corpus", "context"]).filter(pa.array(has)))
    cursor.execute("CREATE TEMP TABLE whole AS FROM kept_contexts")
    return len(has) - sum(has)


def _documents(cursor: duckdb.DuckDBPyConnection) -> Ints:
    """Make the table ``documents``, numbered; return their tokens in a and b, [documents, 2]."""
    cursor.execute(
        "CREATE TEMP TABLE documents AS SELECT home, document, "
        "CAST(row_number() OVER (ORDER BY home, document) - 1 AS INTEGER) AS number, "
        "count(*) FILTER (WHERE in_a) AS n_a, count(*) FILTER (WHERE in_b) AS n_b "
        "FROM marked GROUP BY home, document"
    )
    lost = cursor.execute("SELECT sum(n_a + n_b) FROM documents WHERE document IS NULL").fetchone()
    if lost is not None and lost[0]:
        raise InvalidArgumentError(
            f"a unit for each token was asked for; of {counted(int(lost[0]), 'token')} it is null; "
            "give one that all tokens have, or sets without these tokens"
        )
    rows = cursor.execute("SELECT n_a, n_b FROM documents ORDER BY number").to_arrow_table()
    return np.stack([rows["n_a"].to_numpy(), rows["n_b"].to_numpy()], axis=1)


def _check_filled(tokens: Ints, sides: tuple[Side, Side], n_lost: int) -> None:
    for name, side, n in zip("ab", sides, tokens.sum(axis=0), strict=True):
        if n:
            continue
        where = "" if side.asked.where is None else f" meets {side.asked.where!r}"
        kept = " of the documents that are kept" if n_lost else ""
        raise InvalidArgumentError(
            f"set {name} ({side.asked}) was to be compared; no token{kept} of "
            f"{', '.join(sorted(side.corpora))}{where or ' is in it'}; give a set with tokens"
        )


def _place(cursor: duckdb.DuckDBPyConnection, n_tokens: Ints, windows: Windows) -> None:
    """Make the table ``tokens``; only where a part is tested its tokens are numbered."""
    plan = {"number": pa.array(np.arange(len(n_tokens)), pa.int32())}
    for side in (0, 1):
        plan |= {
            f"n_{side}": n_tokens[:, side], f"length_{side}": windows.length[:, side],
            f"start_{side}": windows.start[:, side],
        }  # fmt: skip
    cursor.register("plan", pa.table(plan))
    parts = []
    for side, name in enumerate("ab"):
        rows = (
            f"SELECT corpus, context, position, CAST(2 * number + {side} AS INTEGER) AS part, "
            f"p.n_{side} AS n, length_{side} AS length, start_{side} AS start FROM marked "
            f"JOIN documents USING (home, document) JOIN plan p USING (number) "
            f"WHERE in_{name} AND p.n_{side} > 0"
        )
        columns = "corpus, context, position, part"
        nth = "row_number() OVER (PARTITION BY part ORDER BY corpus, context, position) - 1"
        parts += [
            f"SELECT {columns}, length > 0 AS tested FROM ({rows}) WHERE length IN (0, n)",
            f"SELECT {columns}, ({nth} + n - start) % n < length AS tested FROM ({rows}) "
            "WHERE length NOT IN (0, n)",
        ]
    cursor.execute(f"CREATE TEMP TABLE tokens AS {' UNION ALL '.join(parts)}")
    cursor.execute("DROP TABLE marked")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(literal(name) for name in names)
