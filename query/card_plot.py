"""A feature's card as a figure of matplotlib, which is not needed for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scopelake.errors import MissingDependencyError
from scopelake.query.card_shapes import densities, shown_bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scopelake.query.card import FeatureCard


def plot(card: FeatureCard) -> Figure:
    """Return a figure: the histogram of log activation, and the density by position.

    It belongs to no window and no global state of matplotlib's: show it in a notebook, or
    ``savefig`` it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a plot of a feature's card was asked for; matplotlib is not installed; run pip "
            "install 'scopelake[plot]'"
        ) from error
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    first, shown = shown_bins((card.total and card.total.histogram) or ())
    left.bar([2.0 ** (first + i) for i in range(len(shown))], shown,
             [2.0 ** (first + i) for i in range(len(shown))], align="edge",
             color="darkorange", edgecolor="white")  # fmt: skip
    left.set_xscale("log", base=2)
    left.set(xlabel="activation", ylabel="firings")
    values, width = densities(card.by_position, 128)
    right.bar([i * width for i in range(len(values))], [100 * v for v in values], width,
              align="edge", color="darkorange")  # fmt: skip
    right.set(xlabel="position in the context", ylabel="density, %")
    figure.suptitle(f"feature {card.feature} of {card.sae}", fontsize="medium")
    return figure
