"""A feature's card as HTML that needs nothing else: tables, and pictures as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from scopelake.names import visible
from scopelake.query.card_shapes import densities, in_words, number, share, shown_bins
from scopelake.query.card_text import facts

if TYPE_CHECKING:
    from scopelake.query.card import FeatureCard

_WIDTH: Final = 360
_HEIGHT: Final = 90
_MARGIN: Final = 14
_NUMBERS: Final = {
    "density": share,
    **dict.fromkeys(("mean", "max", "p10", "p50", "p90", "p99", "cosine", "logit", "lift", "pmi"),
                    number),
}  # fmt: skip
_HIDDEN: Final = ("histogram", "quantile_error", "side", "rank", "n_feature", "n_tokens")


def card_html(card: FeatureCard) -> str:
    """Return a card as HTML."""
    said = [facts(card.coder)]
    said += [f"{row['label']} ({row['source']})" for row in card.labels.to_pylist()]
    said += [] if card.total is None else [in_words(card.total)]
    norms = (("decoder", card.decoder_norm), ("encoder", card.encoder_norm))
    said += [f"{name} norm {number(value)}" for name, value in norms if value is not None]
    parts = [
        f"<b>feature {card.feature}</b> of {escape(card.sae)}",
        *(f"<br>{escape(visible(line))}" for line in said),
        "<div>",
        _histogram(card),
        _positions(card),
        "</div>",
        _table("by corpus", card.by_corpus),
        _table("by role", card.by_role) if len(set(card.by_role["role"].to_pylist())) > 1 else "",
        *(
            _table(name, card.tokens.filter(pa.compute.equal(card.tokens["side"], side)))
            for name, side in (("promotes", "top"), ("suppresses", "bottom"))
        ),
        _table("nearest by decoder cosine", card.neighbors),
        "" if card.coactive is None else _table("fires with", card.coactive.table),
        card.peaks._repr_html_(),
        *(f"<br>{escape(note)}" for note in card.notes),
    ]
    return f'<div class="scopelake-card">{"".join(parts)}</div>'


def _table(name: str, rows: pa.Table) -> str:
    if not rows.num_rows:
        return ""
    names = [n for n in rows.column_names if n not in _HIDDEN]
    head = "".join(f"<th>{n}</th>" for n in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(n, row[n])}</td>' for n in names)}</tr>"
        for row in rows.to_pylist()
    )
    return f"<p><i>{name}</i></p><table><tr>{head}</tr>{body}</table>"


def _cell(name: str, value: Any) -> str:  # noqa: ANN401
    if name in _NUMBERS:
        return _NUMBERS[name](value)
    if value is None:
        return ""
    if isinstance(value, str):
        shown = escape(visible(value))
        return f"<code>{shown}</code>" if name == "token" else shown
    return f"{value:,}" if name.startswith(("firings", "n_")) else str(value)


def _histogram(card: FeatureCard) -> str:
    first, shown = shown_bins((card.total and card.total.histogram) or ())
    labels = [f"2^{first + i} to 2^{first + i + 1}: {n:,} firings" for i, n in enumerate(shown)]
    ends = (f"2^{first}", f"2^{first + len(shown)}")
    return _svg("firings by activation", shown, labels, ends)


def _positions(card: FeatureCard) -> str:
    values, width = densities(card.by_position, 128)
    labels = [f"from position {i * width}: {share(v)}" for i, v in enumerate(values)]
    return _svg("density by position", values, labels, ("0", f"{card.by_position.num_rows - 1}"))


def _svg(title: str, values: Sequence[float], labels: Sequence[str], ends: tuple[str, str]) -> str:
    """Return bars, the highest full, each with a title that browsers show."""
    highest = max(values, default=0)
    if not highest:
        return ""
    step, room = _WIDTH / len(values), _HEIGHT - 2 * _MARGIN
    bars = "".join(
        f'<rect x="{i * step:.2f}" y="{_HEIGHT - _MARGIN - room * v / highest:.2f}" '
        f'width="{max(step - 1, 0.5):.2f}" height="{room * v / highest:.2f}" fill="darkorange">'
        f"<title>{escape(label)}</title></rect>"
        for i, (v, label) in enumerate(zip(values, labels, strict=True))
    )
    style = 'font-size="10" font-family="sans-serif" fill="currentColor"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" style="margin-right:1em">'
        f'<text x="0" y="10" {style}>{escape(title)}</text>{bars}'
        f'<text x="0" y="{_HEIGHT - 3}" {style}>{escape(ends[0])}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 3}" text-anchor="end" {style}>{escape(ends[1])}</text>'
        "</svg>"
    )
