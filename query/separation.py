"""Features by how well their firing tells spans of text from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from scopelake.names import counted, visible

if TYPE_CHECKING:
    import pandas as pd

RANKINGS: Final = ("f1", "precision", "recall")


@dataclass(frozen=True)
class Separation:
    """Features by how well their firing tells some spans from the rest of their corpora."""

    table: pa.Table
    """sae, layer, site, feature, f1, precision (share of its firings that are in spans), recall
    (share of the spans in which it fires), hits (firings in spans), firings (in all), spans (in
    which it fires), label, promotes (tokens); by the ranking, highest first. BOS does not count."""
    by: str
    n_spans: int
    n_tokens: int
    """Tokens of the spans, BOS included."""
    corpora: tuple[str, ...]
    """Those that have the spans: what is not in one is their other tokens."""
    note: str = ""
    """SAEs that are left out."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return a line for each feature."""
        bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
        lines = [self._head(), f"{bold}    f1  precision  recall  feature  SAE{plain}"]
        lines += [
            f"{row['f1']:6.3f}  {row['precision']:9.3f}  {row['recall']:6.3f}  "
            f"{row['feature']:7d}  {row['sae']}{_about(row)}"
            for row in self.table.to_pylist()
        ]
        if self.table.num_rows == 0:
            lines.append("    nothing fires in them")
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        names = ("f1", "precision", "recall", "feature", "sae")
        body = "".join(
            f"<tr>{''.join(f'<td>{_cell(row[n])}</td>' for n in names)}"
            f"<td>{escape(_about(row))}</td></tr>"
            for row in self.table.to_pylist()
        )
        head = "".join(f"<th>{n}</th>" for n in (*names, ""))
        return (
            f"<b>{escape(self._head())}</b><table><tr>{head}</tr>{body}</table>{escape(self.note)}"
        )

    def _head(self) -> str:
        return (
            f"{counted(self.n_spans, 'span')}, {counted(self.n_tokens, 'token')} of "
            f"{', '.join(self.corpora)}; features by {self.by}"
        )


def _about(row: Mapping[str, Any]) -> str:
    if row["label"]:
        return f"  {visible(row['label'])}"
    return f"  {' '.join(map(visible, row['promotes']))}" if row["promotes"] else ""


def _cell(value: Any) -> str:  # noqa: ANN401
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
