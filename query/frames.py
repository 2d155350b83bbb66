"""Tables of a snapshot as dask dataframes: a partition for each file, hashed when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, MissingDependencyError, QueryError
from scopelake.names import KINDS, ROLES
from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo
from scopelake.store.integrity import check_files
from scopelake.store.layout import table_folder
from scopelake.store.reading import Filters, read_files
from scopelake.store.root import root_at
from scopelake.store.schema import PARTITIONS, SCHEMAS, SORTED_BY

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

_WORDS: Final = {"kind": KINDS, "kinds": KINDS, "roles": ROLES}
"""Columns that are stored as numbers and read as words."""


@dataclass(frozen=True)
class Part:
    """How one partition is made, on whatever machine: from a file."""

    url: str
    """Of the lake."""
    table: str
    columns: tuple[str, ...]
    categories: tuple[tuple[str, tuple[str, ...]], ...]
    """By partition column all its values, so that all partitions have one type."""

    def __call__(self, file: dict[str, Any]) -> pd.DataFrame:
        """Read a file.

        Args:
            file: path, checksum, and partition.<column> for each.

        Raises:
            DamagedFileError: it is not what was written.
        """
        root = root_at(self.url)
        if file["checksum"] is not None:
            name = file["path"].rsplit("/", 1)[-1]
            folder = table_folder(self.table)
            check_files(root, [f"{folder}/{file['path']}"], {name: file["checksum"]})
        one = pa.Table.from_pylist([file])
        return self.frame(read_files(root, self.table, one, self.columns, ()))

    def frame(self, rows: pa.Table) -> pd.DataFrame:
        """Return rows as pandas has them, indexed by what the table is sorted by."""
        import pandas as pd

        fields = [rows.schema.field(name) for name in rows.column_names]
        rows = pa.table({f.name: _in_words(f.name, rows[f.name]) for f in fields})
        # Contexts have nulls among numbers, which only Arrow's types keep apart from NaN.
        types = pd.ArrowDtype if self.table == "contexts" else None
        found = rows.to_pandas(types_mapper=types)
        for name, values in self.categories:
            if name in found:
                found[name] = pd.Categorical(found[name], categories=list(values))
        if "kind" in found:
            found["kind"] = pd.Categorical(found["kind"], categories=list(KINDS))
        index = SORTED_BY[self.table][0]
        found[index] = found[index].astype(str(SCHEMAS[self.table].field(index).type))
        return found.set_index(index)


def firings_frame(
    connection: Connection,
    table: str,
    sae: SaeInfo,
    corpus: str | None,
    columns: Sequence[str] | None,
) -> dd.DataFrame:
    """Return the firings of an SAE as a dask dataframe.

    Args:
        connection: from `connect`.
        table: ``codes``, indexed by context, or ``postings``, indexed by feature.
        sae: from `resolve_sae`.
        corpus: only this one; all on which the SAE was run if None.
        columns: those to read besides the index; all if None.

    Raises:
        CorpusNotFoundError, NotIngestedError: as for other queries.
        QueryError: not all firings on a corpus are known.
        InvalidArgumentError: there is no such column.
        MissingDependencyError: dask's dataframes are not installed.
    """
    connection.coverage.check_known(sae, corpus)
    for name, known in sae.partial.items():
        if corpus in (None, name):
            raise QueryError(
                f"all firings of {sae.name} were asked for; on corpus {name!r} not all are in the "
                f"lake ({known.what}); name another corpus, or ingest it with all firings"
            )
    for name in connection.coverage.corpora(sae.name) if corpus is None else [corpus]:
        if state := connection.coverage.state(sae.name, name):
            raise QueryError(
                f"all firings of {sae.name} were asked for; on corpus {name!r} its ingest is "
                f"{state}; ingest again to resume, or name another corpus"
            )
    filters: list[tuple[str, str, Any]] = [("sae", "=", sae.name)]
    filters += [("corpus", "=", corpus)] if corpus is not None else []
    return _frame(connection, table, filters, columns)


def contexts_frame(
    connection: Connection, corpus: str | None, columns: Sequence[str] | None
) -> dd.DataFrame:
    """Return contexts as a dask dataframe, indexed by context.

    Args:
        connection: from `connect`.
        corpus: only this one; all if None.
        columns: those to read besides the index; all if None.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        InvalidArgumentError: there is no such column.
        MissingDependencyError: dask's dataframes are not installed.
    """
    if corpus is not None:
        connection.coverage.check_corpus(corpus)
    filters = [("corpus", "=", corpus)] if corpus is not None else []
    return _frame(connection, "contexts", filters, columns)


def _frame(
    connection: Connection, table: str, filters: Filters, columns: Sequence[str] | None
) -> dd.DataFrame:
    dataframe = _dask()
    names = _columns(table, columns)
    files, checksums = connection.files(table, filters)
    index = SORTED_BY[table][0]
    by = [*(f"partition.{p}" for p in PARTITIONS[table]), f"min.{index}"]
    files = files.sort_by([(column, "ascending") for column in by])
    keys = ["path", *(f"partition.{p}" for p in PARTITIONS[table])]
    given = files.select(keys).to_pylist()
    parts = [row | {"checksum": checksums.get(row["path"].rsplit("/", 1)[-1])} for row in given]
    categories = tuple(
        (p, tuple(sorted({row[f"partition.{p}"] for row in given}))) for p in PARTITIONS[table]
    )
    part = Part(connection.url, table, names, categories)
    wanted = pa.schema([SCHEMAS[table].field(name) for name in names])
    meta = part.frame(wanted.empty_table())
    made: dd.DataFrame = (
        dataframe.from_map(part, parts, meta=meta, divisions=_divisions(files, index))
        if parts
        else dataframe.from_pandas(meta, npartitions=1)
    )
    return made


def _divisions(files: pa.Table, index: str) -> tuple[int, ...] | None:
    """Return where each partition begins and the last ends, if they follow each other."""
    low, high = (files[f"{end}.{index}"].to_pylist() for end in ("min", "max"))
    if None in low or None in high:
        return None
    follow = all(end < begin for end, begin in zip(high, low[1:], strict=False))
    return (*low, high[-1]) if follow else None


def _columns(table: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    index, there = SORTED_BY[table][0], SCHEMAS[table].names
    if columns is None:
        return tuple(there)
    if isinstance(columns, str) or (unknown := [c for c in columns if c not in there]):
        raise InvalidArgumentError(
            f"columns {columns if isinstance(columns, str) else unknown!r} of {table} were asked "
            f"for; it has {', '.join(there)}; give a list of these"
        )
    return tuple(dict.fromkeys([index, *columns]))


def _in_words(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return kinds and roles as words, as SQL shows them."""
    if name not in _WORDS:
        return values
    words = pa.array(_WORDS[name], pa.string())
    flat = values.combine_chunks()
    if pa.types.is_list(flat.type):
        return pa.chunked_array([pa.ListArray.from_arrays(flat.offsets, words.take(flat.values))])
    return pa.chunked_array([words.take(flat)], pa.string())


def _dask() -> Any:  # noqa: ANN401
    try:
        import dask.dataframe as dataframe
    except ImportError as error:
        raise MissingDependencyError(
            "a dask dataframe was asked for; dask's dataframes are not installed; run pip install "
            "'scopelake[dask]'"
        ) from error
    return dataframe
