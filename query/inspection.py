"""What a model and its SAEs make of one prompt, and how it shows itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scopelake.names import FiringRanking

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Inspection:
    """A prompt's tokens, what fired at each of them in every SAE, and what the SAEs miss."""

    corpus: str | None
    """The corpus that it is in the lake; None if it was thrown away."""
    model: str
    tokens: pa.Table
    """position, token, role, turn, kind; by position. Tokens that the model wrote in answer are of
    kind ``generated``."""
    firings: pa.Table
    """sae, layer, site, position, token, feature, activation, score, percentile, percentile_error,
    label, top_tokens; by position, then score, highest first: of each SAE and token the first `k`.
    The percentile, 0 to 100, is the share of the feature's firings on `against` that are weaker,
    null on BOS and where it never fires there; its error, in points, is 0 where it was counted."""
    errors: pa.Table
    """sae, layer, site, position, unexplained, error, norm: for each token but BOS and each place
    that an SAE writes to. With target t, reconstruction y of the stored firings, and b = b_dec,
    error is ||t - y||, norm ||t||, unexplained ||t - y||^2 / ||t - b||^2: 0 is perfect, 1 no better
    than if nothing had fired."""
    by: FiringRanking
    """What the score is."""
    k: int | None
    against: str | None
    """The corpus of the percentiles, and of what is usual in the scores."""
    note: str = ""
    """What the answer is short of."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the firings as a pandas frame."""
        return self.firings.to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: the tables as lists of rows."""
        tables = {name: getattr(self, name).to_pylist() for name in ("tokens", "firings", "errors")}
        plain = {
            name: getattr(self, name) for name in ("corpus", "model", "by", "k", "against", "note")
        }
        return plain | tables

    def to_json(self) -> str:
        """Return `to_dict` as strict JSON, on one line."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_text(self, *, color: bool = False) -> str:
        """Return token by token, and SAE by SAE, what fired and how much is unexplained."""
        from scopelake.query.inspection_text import inspection_text

        return inspection_text(self, color=color)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page: tokens by layers, and what fired in each cell.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            InvalidArgumentError: it cannot be written.
        """
        from scopelake.query.inspection_page import page, write_page

        return write_page(path, page(self))

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from scopelake.query.inspection_text import inspection_table

        return inspection_table(self)
