"""The SQL text of the views: one per table, at a snapshot's versions, plus ``tokens``."""

from __future__ import annotations

from typing import Final

from scopelake.names import KINDS, ROLES
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import TABLES
from scopelake.store.snapshot import Snapshot

PRIVATE: Final = "stored"
"""Schema of the tables as they are stored; the views in ``main`` are what users see."""


def literal(text: str) -> str:
    """Return `text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def view_statements(store: LakeStore, snapshot: Snapshot) -> list[str]:
    """Return the statements that make every view of `snapshot`, in order."""
    statements = [f"CREATE SCHEMA IF NOT EXISTS {PRIVATE}"]
    for table in TABLES:
        scan = f"delta_scan({literal(store.table_uri(table))}, version => "
        statements.append(
            f"CREATE OR REPLACE VIEW {PRIVATE}.{table} AS "
            f"SELECT * FROM {scan}{snapshot.versions[table]})"
        )
    statements += [
        f"CREATE OR REPLACE VIEW main.{name} AS {_select(name)}" for name in (*TABLES, "tokens")
    ]
    return statements


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
    return f"SELECT * FROM {PRIVATE}.{name}"


def _name_of(expression: str, names: tuple[str, ...]) -> str:
    listed = ", ".join(literal(n) for n in names)
    return f"([{listed}])[{expression} + 1]"


def _tokens() -> str:
    start = "token_starts[i]"
    piece = f"substring(text, {start} + 1, coalesce(token_starts[i + 1], length(text)) - {start})"
    bos = KINDS.index("bos")
    return (
        "SELECT corpus, context, CAST(i - 1 AS INTEGER) AS position, token_ids[i] AS token_id, "
        f"CASE WHEN kinds[i] = {bos} AND {piece} = '' THEN '<bos>' ELSE {piece} END AS token, "
        f"{_name_of('roles[i]', ROLES)} AS role, turns[i] AS turn, "
        f"{_name_of('kinds[i]', KINDS)} AS kind, document "
        f"FROM (SELECT *, unnest(range(1, n_tokens + 1)) AS i FROM {PRIVATE}.contexts)"
    )
