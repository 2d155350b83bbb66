"""A comparison as a figure of matplotlib, which is not needed for anything else."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Final

import numpy as np

from scopelake.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scopelake.query.comparison import Comparison, SetSize

_TITLE_WIDTH: Final = 80
"""Characters of small text that fit above the axes."""


def plot(found: Comparison, q: float) -> Figure:
    """Return a volcano plot: effect against evidence, a point for each feature that was tested.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidArgumentError: nothing was tested.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a plot of a comparison was asked for; matplotlib is not installed; run pip install "
            "'scopelake[plot]'"
        ) from error
    log_odds, rates = found.points()
    if not len(rates):
        raise InvalidArgumentError(
            f"a plot of q-values was asked for; no feature was tested ({found.note}); give sets "
            "of more documents"
        )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    is_found = rates <= q
    height = -np.log10(rates)
    axes.scatter(log_odds[~is_found], height[~is_found], s=6, color="grey", label="others")
    axes.scatter(log_odds[is_found], height[is_found], s=10, color="darkorange",
                 label=f"q <= {q:g}: {int(is_found.sum()):,}")  # fmt: skip
    axes.axvline(0, color="lightgrey", linewidth=0.8, zorder=0)
    axes.set(xlabel="log odds ratio, a to b", ylabel="-log10 of q")
    axes.legend(fontsize="small")
    axes.set_title("\n".join(_named("a", found.a) + _named("b", found.b)), fontsize="small",
                   loc="left", parse_math=False)  # fmt: skip
    return figure


def _named(name: str, size: SetSize) -> list[str]:
    """What a set is, in lines that a predicate of any length does not run out of."""
    return wrap(f"{name}: {size.asked}", _TITLE_WIDTH, subsequent_indent="    ")
