"""The SQL text of the views: one per table, at a snapshot's versions, plus ``tokens``."""

from __future__ import annotations

from typing import Final

import duckdb

from scopelake.names import KIND_BOS, KINDS, ROLES
from scopelake.query.literals import literal
from scopelake.store.catalog import IMPORTED
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import TABLES
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND
from scopelake.store.schema import SCHEMAS
from scopelake.store.snapshot import Snapshot

_DOCUMENT_COLUMNS: Final = ("document", "document_index", "part", "metadata")

_WIDENED: Final = ("contexts", "corpora", "features")
"""Tables with columns that lakes of older versions lack; these read as null."""

PRIVATE: Final = "stored"
"""Schema of the tables as they are stored; the views in ``main`` are what users see."""

DERIVED: Final = ("tokens", "vocabulary")
"""Views that are no table's."""

_SHARDS: Final = (
    f"SELECT sae, corpus, shard FROM {PRIVATE}.files WHERE kind = 'codes' AND shard IS NOT NULL "
    f"UNION SELECT sae, corpus, shard FROM {PRIVATE}.merged"
)
"""The shards of each SAE whose firings are in the lake."""

_SOURCE: Final = (
    "CASE WHEN (t.sae, t.corpus) IN (SELECT (unnest(r.saes), r.corpus) FROM "
    f"{PRIVATE}.runs r WHERE r.state = '{IMPORTED}') THEN 'examples.safetensors' ELSE 'ingest' END"
)
"""Who says so of a row of `t`: the firings of an ingest, or a file of published examples."""


def view_statements(store: LakeStore, snapshot: Snapshot) -> list[str]:
    """Return the statements that make every view of `snapshot`, in order."""
    statements = [f"CREATE SCHEMA IF NOT EXISTS {PRIVATE}"]
    statements += [
        f"CREATE OR REPLACE VIEW {PRIVATE}.{table} AS {_stored(store, snapshot, table)}"
        for table in TABLES
    ]
    statements.append(f"CREATE OR REPLACE VIEW {PRIVATE}.shards AS {_SHARDS}")
    statements += [
        f"CREATE OR REPLACE VIEW main.{name} AS {_select(name)}" for name in (*TABLES, *DERIVED)
    ]
    return statements


def _stored(store: LakeStore, snapshot: Snapshot, table: str) -> str:
    """A table at the snapshot's version; one that the lake did not have then is empty."""
    version = snapshot.versions.get(table)
    there = store.column_names(table, snapshot) if table in _WIDENED else SCHEMAS[table].names
    empty = duckdb.from_arrow(SCHEMAS[table].empty_table())
    typed = zip(empty.columns, empty.types, strict=True)
    nulls = {name: f"CAST(NULL AS {type_}) AS {name}" for name, type_ in typed}
    if version is None:
        return f"SELECT {', '.join(nulls.values())} WHERE false"
    scan = f"delta_scan({literal(store.table_uri(table))}, version => {version})"
    return f"SELECT {', '.join(['*', *(nulls[c] for c in nulls if c not in there)])} FROM {scan}"


def _select(name: str) -> str:
    if name == "contexts":
        return (
            f"SELECT * REPLACE (list_transform(roles, lambda r: {_name_of('r', ROLES)}) AS roles, "
            f"list_transform(kinds, lambda k: {_name_of('k', KINDS)}) AS kinds) "
            f"FROM {PRIVATE}.contexts"
        )
    if name in ("codes", "postings"):
        return f"SELECT * REPLACE ({_name_of('kind', KINDS)} AS kind) FROM {PRIVATE}.{name}"
    if name == "tokens":
        return _tokens()
    if name == "vocabulary":
        return _vocabulary()
    if name == "features":
        return f"SELECT *, {_SOURCE} AS source FROM {PRIVATE}.{name} t"
    if name == "peaks":
        return _peaks()
    if name == "samples":
        # Files of several shards hold more together than each of them may.
        return (
            f"SELECT * FROM {PRIVATE}.samples QUALIFY row_number() OVER (PARTITION BY sae, corpus, "
            f"feature, band ORDER BY priority, context, position) <= {SAMPLES_PER_BAND}"
        )
    return f"SELECT * FROM {PRIVATE}.{name}"


def _peaks() -> str:
    """The strongest of all files, ranked; published examples have their ranks already."""
    return (
        "SELECT sae, corpus, feature, CAST(CASE WHEN source = 'ingest' THEN row_number() OVER of "
        "- 1 ELSE rank END AS INTEGER) AS rank, context, position, activation, source "
        f"FROM (SELECT *, {_SOURCE} AS source FROM {PRIVATE}.peaks t) "
        "WINDOW of AS (PARTITION BY sae, corpus, feature ORDER BY activation DESC, context) "
        f"QUALIFY source <> 'ingest' OR row_number() OVER of <= {PEAKS_DEPTH}"
    )


def _name_of(expression: str, names: tuple[str, ...]) -> str:
    listed = ", ".join(literal(n) for n in names)
    return f"([{listed}])[{expression} + 1]"


def token_columns(firings: str) -> str:
    """Return SQL of `firings` (corpus, context, position, activation) with their tokens' columns.

    It takes each token out of its context's lists, which spares unnesting whole contexts.
    """
    return (
        f"SELECT corpus, context, position, activation, {_token('position + 1')}, "
        f"{', '.join(_of_document(c, 'position + 1') for c in _DOCUMENT_COLUMNS)}, n_tokens, text\n"
        f"FROM ({firings}) JOIN {PRIVATE}.contexts USING (corpus, context)"
    )


def token_rows(condition: str) -> str:
    """Return SQL of tokens with their columns, all that `token_columns` gives but activation.

    Args:
        condition: on the contexts that they are of.
    """
    return (
        f"SELECT corpus, context, CAST(i - 1 AS INTEGER) AS position, {_token('i')}, "
        f"{', '.join(_of_document(c, 'i') for c in _DOCUMENT_COLUMNS)}, n_tokens, text "
        "FROM (SELECT *, unnest(range(1, n_tokens + 1)) AS i "
        f"FROM {PRIVATE}.contexts WHERE {condition})"
    )


def _tokens() -> str:
    return (
        f"SELECT corpus, context, CAST(i - 1 AS INTEGER) AS position, {_token('i')}, "
        f"{_of_document('document', 'i')} "
        f"FROM (SELECT *, unnest(range(1, n_tokens + 1)) AS i FROM {PRIVATE}.contexts)"
    )


def _of_document(column: str, i: str) -> str:
    """A column of the document of the token that is number `i`; packed contexts have several."""
    own = f"documents[len(list_filter(documents, lambda d: d.position < {i}))].{column}"
    return f"CASE WHEN documents IS NULL THEN {column} ELSE {own} END AS {column}"


def _token(i: str) -> str:
    """The columns of the token that is number `i`, from 1, in its context."""
    return (
        f"token_ids[{i}] AS token_id, {piece(i)} AS token, "
        f"{_name_of(f'roles[{i}]', ROLES)} AS role, turns[{i}] AS turn, "
        f"{_name_of(f'kinds[{i}]', KINDS)} AS kind"
    )


def piece(i: str) -> str:
    """The text of the token that is number `i`, from 1, in its context."""
    start = f"token_starts[{i}]"
    stop = f"coalesce(token_starts[{i} + 1], length(text))"
    spelt = f"substring(text, {start} + 1, {stop} - {start})"
    return f"CASE WHEN kinds[{i}] = {KIND_BOS} AND {spelt} = '' THEN '<bos>' ELSE {spelt} END"


def _vocabulary() -> str:
    """Each token as it is spelt where it stands for whole characters.

    Of a character that several tokens make (bytes, in Gemma's vocabulary) the last has the text and
    those before it none: neither is a spelling. Only the first and the last place of each token are
    spelt, since finding a character in a text takes a walk from its beginning.
    """
    is_bos = f"kind = {KIND_BOS} AND stop = start"
    is_whole = f"({is_bos} OR stop > start AND (before IS NULL OR before < start OR bos_before))"
    ends = "{'c': context, 'a': start, 'b': stop}"
    return (
        "WITH places AS (SELECT corpus, context, unnest(token_ids) AS token_id, "
        "unnest(token_starts) AS start, "
        "unnest(list_append(token_starts[2:], CAST(length(text) AS INTEGER))) AS stop, "
        "unnest(kinds) AS kind, unnest(list_prepend(NULL, token_starts[:-2])) AS before, "
        f"unnest(list_prepend(false, list_transform(kinds[:-2], lambda k: k = {KIND_BOS}))) "
        f"AS bos_before FROM {PRIVATE}.contexts), "
        f"found AS (SELECT corpus, token_id, count(*) AS n, "
        f"unnest([min({ends}) FILTER (WHERE {is_whole}), max({ends}) FILTER (WHERE {is_whole})]) "
        "AS place FROM places GROUP BY corpus, token_id), "
        "spelt AS (SELECT f.corpus, f.token_id, f.n, CASE WHEN f.place.b > f.place.a "
        "THEN substring(c.text, f.place.a + 1, f.place.b - f.place.a) "
        "WHEN f.place IS NOT NULL THEN '<bos>' END AS token "
        f"FROM found f LEFT JOIN {PRIVATE}.contexts c "
        "ON c.corpus = f.corpus AND c.context = f.place.c) "
        "SELECT o.tokenizer, s.token_id, CASE WHEN min(s.token) = max(s.token) THEN min(s.token) "
        "END AS token, CAST(sum(s.n) // 2 AS BIGINT) AS n_tokens "
        f"FROM spelt s JOIN {PRIVATE}.corpora o ON o.corpus = s.corpus "
        "GROUP BY o.tokenizer, s.token_id"
    )
