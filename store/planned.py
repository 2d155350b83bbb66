"""A commit before it is carried out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from scopelake.store import delta
from scopelake.store.receipts import Receipt


@dataclass(frozen=True)
class Commit:
    """What is to become part of the lake, all at once."""

    transaction: str
    reason: str
    run: str | None
    created_at: datetime
    receipts: tuple[Receipt, ...]
    rows: Mapping[str, pa.Table]
    replace: Mapping[str, Sequence[str]]
    """By table, key columns: rows whose values in them are those of a new row are replaced."""
    retire: tuple[str, ...] = ()
    """Data files, relative to the lake, that leave it; older snapshots keep them."""
    drop: tuple[str, ...] = ()
    """Data files, relative to the lake, that leave it and are deleted."""
    remove: Mapping[str, tuple[str, Sequence[Any]]] = field(default_factory=dict)
    """By table, a column and its values whose rows leave it."""

    def to_json(self) -> str:
        """Return it as JSON that `from_json` reads back exactly."""
        return json.dumps(
            {
                "transaction": self.transaction,
                "reason": self.reason,
                "run": self.run,
                "created_at": self.created_at.isoformat(),
                "receipts": [r.to_dict() for r in self.receipts],
                "rows": {table: delta.rows_json(rows) for table, rows in self.rows.items()},
                "replace": {table: list(key) for table, key in self.replace.items()},
                "retire": list(self.retire),
                "drop": list(self.drop),
                "remove": {t: [column, list(v)] for t, (column, v) in self.remove.items()},
            }
        )

    @staticmethod
    def from_json(text: str) -> Commit:
        """Return the commit that `to_json` made `text` of."""
        values: dict[str, Any] = json.loads(text)
        return Commit(
            values["transaction"],
            values["reason"],
            values["run"],
            datetime.fromisoformat(values["created_at"]),
            tuple(Receipt.from_dict(r) for r in values["receipts"]),
            {table: delta.rows_from_json(table, rows) for table, rows in values["rows"].items()},
            values["replace"],
            tuple(values["retire"]),
            tuple(values["drop"]),
            {table: (column, found) for table, (column, found) in values["remove"].items()},
        )
