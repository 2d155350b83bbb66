"""A feature's card: how it fires, what it writes, what it is near to, in one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scopelake.query.card_statistics import Statistics
from scopelake.query.coactive import Coactive
from scopelake.query.contexts import TopContexts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Decode = Callable[[str, str, Sequence[int]], "list[str] | None"]
"""Given a tokenizer's name and digest and token ids, their texts; None: it is not at hand."""


@dataclass(frozen=True, kw_only=True)
class CoderFacts:
    """The SAE that a feature is of."""

    sae: str
    type: str
    """``sae``, ``transcoder``, ``crosscoder`` or ``clt``"""
    site: str
    layer: int
    """That the feature reads."""
    layers: tuple[int, ...]
    """That the SAE reads."""
    width: int
    d_in: int | None
    d_out: int | None
    l0: float | None
    """Firings a token that it was trained for."""
    affine: bool | None
    """Whether it has a linear skip from what it reads to what it writes."""
    model: str | None


@dataclass(frozen=True, kw_only=True)
class FeatureCard:
    """A feature, as far as a lake knows it; BOS is left out everywhere."""

    feature: int
    coder: CoderFacts
    corpora: tuple[str, ...]
    """That the statistics in all are of: those of which all firings were counted."""
    total: Statistics | None
    """Over these corpora; None: there are none."""
    by_corpus: pa.Table
    """corpus, state (what is known of its firings; empty: all), then the columns of
    `Statistics`."""
    by_role: pa.Table
    """role, kind, then the columns of `Statistics`; over corpora of which all firings are kept."""
    by_position: pa.Table
    """position (of the token in its context), firings, n_tokens, density; over the same."""
    tokens: pa.Table
    """side (top or bottom), rank, token_id, token (null: its text is not known), logit: what the
    decoder promotes and suppresses through the unembedding."""
    decoder_norm: float | None
    encoder_norm: float | None
    labels: pa.Table
    """label, source"""
    neighbors: pa.Table
    """other_sae, other_feature, rank (among the features of that SAE), cosine; the nearest of its
    own SAE, then the nearest of others."""
    peaks: TopContexts
    coactive: Coactive | None = None
    """None: not asked for, or not known."""
    notes: tuple[str, ...] = ()
    """What the card is short of."""

    @property
    def sae(self) -> str:
        """Name of the SAE."""
        return self.coder.sae

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        tables = ("by_corpus", "by_role", "by_position", "tokens", "labels", "neighbors")
        together = self.coactive
        return {
            "sae": self.sae,
            "feature": self.feature,
            "coder": asdict(self.coder),
            "corpora": list(self.corpora),
            "total": None if self.total is None else asdict(self.total),
            **{name: getattr(self, name).to_pylist() for name in tables},
            "decoder_norm": self.decoder_norm,
            "encoder_norm": self.encoder_norm,
            "peaks": self.peaks.table.to_pylist(),
            "coactive": None if together is None else together.table.to_pylist(),
            "notes": list(self.notes),
        }

    def to_text(self, *, color: bool = False) -> str:
        """Return the card as lines of text, with bars for its histogram and positions."""
        from scopelake.query.card_text import card_text

        return card_text(self, color=color)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from scopelake.query.card_html import card_html

        return card_html(self)

    def plot(self) -> Figure:
        """Return a figure of matplotlib: histogram of log activation, density by position.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from scopelake.query.card_plot import plot

        return plot(self)
