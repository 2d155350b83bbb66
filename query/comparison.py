"""What a comparison of two sets of tokens found, and how it shows itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import InvalidArgumentError
from scopelake.query.document_windows import DocumentTest
from scopelake.query.firing_counts import DocumentValue

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_F64: Final = pa.float64()
_OF_SIDE: Final = (("firings", pa.int64()), ("documents", pa.int64()), ("rate", _F64),
                   ("mean", _F64), ("mean_of_all", _F64))  # fmt: skip

COLUMNS: Final = pa.schema(
    [
        ("sae", pa.string()), ("layer", pa.int32()), ("site", pa.string()),
        ("feature", pa.int32()), ("other_sae", pa.string()), ("other_feature", pa.int32()),
        ("cosine", _F64),
        *((f"{name}_{side}", type_) for name, type_ in _OF_SIDE for side in "ab"),
        *((f"difference{end}", _F64) for end in ("", "_low", "_high")),
        *((f"log_odds{end}", _F64) for end in ("", "_low", "_high")),
        *((f"auc{end}", _F64) for end in ("", "_low", "_high")),
        ("z", _F64), ("p", _F64), ("q", _F64),
        ("label", pa.string()), ("promotes", pa.list_(pa.string())),
    ]
)  # fmt: skip
"""Of `Comparison.table`."""

N_SHOWN: Final = 20
"""Features that are printed, if nothing else is asked for."""

Higher = Literal["a", "b"]


def check_top(k: int | None, q: float | None, higher: str | None) -> None:
    """Refuse a choice of rows that `Comparison.top` cannot make.

    Raises:
        InvalidArgumentError: `k` is below 0, `q` is no share, or `higher` is neither.
    """
    if k is not None and k < 0:
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of features; give 0 or more"
        )
    if q is not None and not 0 <= q <= 1:
        raise InvalidArgumentError(
            f"q={q} was asked for; a false discovery rate is a share; give one from 0 to 1"
        )
    if higher not in (None, "a", "b"):
        raise InvalidArgumentError(
            f"higher={higher!r} was asked for; there are a and b; choose one"
        )


@dataclass(frozen=True)
class SetSize:
    """One of the two sets, as it was asked for and as it is."""

    asked: str
    corpora: tuple[str, ...]
    """On which its tokens are."""
    n_tokens: int
    """Without BOS."""
    n_documents: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How features fire on two sets of tokens, those that separate the sets most first."""

    a: SetSize
    b: SetSize
    saes: tuple[tuple[str, str], ...]
    """The SAE of a and that of b, which are mostly the same one."""
    unit: str | None
    """SQL of what is said of documents instead; None: nothing is."""
    by: DocumentValue
    """What ranks documents: their ``rate``, or their mean ``activation`` over all tokens."""
    test: DocumentTest | None
    """``rank-sum`` between documents of one set each, ``signed-rank`` within documents that have
    tokens of both; None: there was too little to test."""
    n_documents: tuple[int, int]
    """In the test, of a and of b."""
    tested_tokens: tuple[int, int]
    """Of a and b: tokens within the parts of documents that are tested."""
    confidence: float
    """Of the intervals."""
    table: pa.Table
    """A row for each feature of each SAE, by p (the lowest first; untested ones last):

    - sae, layer, site, feature; other_sae, other_feature: with which it is compared in b, itself
      unless two SAEs are; cosine of both decoder directions.
    - For a and b: firings, documents in which it fires, rate (firings a token), mean (activation
      where it fires; null where it does not), mean_of_all (activation over all tokens).
    - difference (rate in a less that in b) and log_odds (natural log of their odds ratio), with
      ``_low`` and ``_high``, intervals that hold by document.
    - auc: chance that a document has a higher rate (or activation, see `by`) in a than in b, ties
      half, with interval; z,
      p and q (false discovery rate) of the test by document. Null where it is untested.
    - label; promotes, the tokens that the decoder promotes most; null where there are none."""
    notes: tuple[str, ...] = ()
    """What the answer is short of."""

    @property
    def note(self) -> str:
        """What the answer is short of, on a line."""
        return "; ".join(self.notes)

    @property
    def n_tested(self) -> int:
        """Features that were tested: the family that q-values are of."""
        return int(self.table.num_rows - self.table["p"].null_count)

    def top(
        self, k: int | None = N_SHOWN, *, q: float | None = None, higher: Higher | None = None
    ) -> pa.Table:
        """Return the first rows of the table.

        Args:
            k: most rows; None: all.
            q: only discoveries at this false discovery rate.
            higher: only features that documents have more of in ``a``, or in ``b``, by auc; where
                nothing was tested, by log_odds.

        Raises:
            InvalidArgumentError: `k` is below 0, `q` is no share, or `higher` is neither.
        """
        check_top(k, q, higher)
        found = self.table
        if q is not None:
            found = found.filter(pc.less_equal(found["q"], q))
        if higher is not None:
            effect = found["log_odds"] if self.test is None else pc.subtract(found["auc"], 0.5)
            found = found.filter((pc.greater if higher == "a" else pc.less)(effect, 0.0))
        return found.slice(0, k)

    def to_pandas(self) -> pd.DataFrame:
        """Return all rows as a pandas frame."""
        return self.table.to_pandas()

    def to_dict(
        self, k: int | None = None, *, q: float | None = None, higher: Higher | None = None
    ) -> dict[str, Any]:
        """Return everything as plain values, for JSON; of the rows those of `top`."""
        return {
            "a": asdict(self.a),
            "b": asdict(self.b),
            "saes": [list(pair) for pair in self.saes],
            "unit": self.unit,
            "by": self.by,
            "test": self.test,
            "n_documents": list(self.n_documents),
            "tested_tokens": list(self.tested_tokens),
            "confidence": self.confidence,
            "n_features": self.table.num_rows,
            "n_tested": self.n_tested,
            "features": self.top(k, q=q, higher=higher).to_pylist(),
            "notes": list(self.notes),
        }

    def to_text(
        self, k: int = N_SHOWN, *, q: float | None = None, higher: Higher | None = None,
        color: bool = False,
    ) -> str:  # fmt: skip
        """Return the sizes of both sets, and a line for each of the features of `top`."""
        from scopelake.query.comparison_text import comparison_text

        found = self.top(None, q=q, higher=higher)
        return comparison_text(self, found, self.top(k, q=q, higher=higher), color=color)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from scopelake.query.comparison_text import comparison_html

        return comparison_html(self)

    def plot(self, q: float = 0.05) -> Figure:
        """Return a figure of matplotlib: log odds ratio against -log10 of the q-value.

        Args:
            q: discoveries at this false discovery rate are coloured.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidArgumentError: nothing was tested.
        """
        from scopelake.query.comparison_plot import plot

        return plot(self, q)

    def points(self) -> tuple[Any, Any]:
        """Return log odds ratio and q-value of the features that were tested, [n_tested] each."""
        tested = self.table.filter(pc.is_valid(self.table["q"]))
        return tested["log_odds"].to_numpy(), np.asarray(tested["q"].to_numpy())
