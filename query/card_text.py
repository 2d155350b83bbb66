"""A feature's card as lines of text, with bars of block characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from scopelake.query.card_shapes import densities, in_words, number, share, shown_bins
from scopelake.query.windows import visible

if TYPE_CHECKING:
    from scopelake.query.card import CoderFacts, FeatureCard

_BARS: Final = " ▁▂▃▄▅▆▇█"
_COLUMNS: Final = 64


def card_text(card: FeatureCard, *, color: bool = False) -> str:
    """Return a card as text.

    Args:
        card: the card.
        color: mark headings, and firing tokens, with the escapes of a terminal.
    """
    bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    lines = [f"{bold}feature {card.feature}{plain} of {card.sae}", f"  {facts(card.coder)}"]
    lines += [
        f"  label: {visible(r['label'])} ({visible(r['source'])})" for r in card.labels.to_pylist()
    ]

    def section(name: str, body: Sequence[str]) -> None:
        if body:
            lines.extend([f"{bold}{name}{plain}", *(f"  {line}" for line in body)])

    section("firings", _firings(card))
    section("by role", _roles(card))
    section("density by position", _positions(card))
    section("decoder", _decoder(card))
    section("nearest by decoder cosine", _neighbors(card))
    section("fires with", _coactive(card))
    section("strongest", card.peaks.to_text(color=color).splitlines()[1:])
    lines += [f"({note})" for note in card.notes]
    return "\n".join(lines)


def bars(values: Sequence[float]) -> str:
    """Return a bar for each value, the highest full; what is above nothing is seen."""
    highest = max(values, default=0)
    if not highest:
        return _BARS[0] * len(values)
    full = len(_BARS) - 1
    return "".join(_BARS[max(1, round(full * v / highest)) if v > 0 else 0] for v in values)


def facts(coder: CoderFacts) -> str:
    """Return what an SAE is, on a line."""
    read = ", ".join(map(str, coder.layers))
    parts = [
        f"{coder.type} at {coder.site}",
        f"layer {coder.layer}" + ("" if len(coder.layers) == 1 else f" of {read}"),
        f"{coder.width:,} features",
        *([f"reads {coder.d_in:,} values"] if coder.d_in is not None else []),
        *([f"L0 {coder.l0:g}"] if coder.l0 is not None else []),
        *(["affine"] if coder.affine else []),
        *([coder.model] if coder.model else []),
    ]
    return ", ".join(parts)


def _firings(card: FeatureCard) -> list[str]:
    lines = []
    if card.total is not None:
        lines.append(in_words(card.total))
        first, shown = shown_bins(card.total.histogram or ())
        if shown:
            lines.append(f"2^{first} {bars(shown)} 2^{first + len(shown)}")
    rows = card.by_corpus.to_pylist()
    if len(rows) > 1 or card.total is None:
        lines += [f"{visible(row['corpus'])}: {in_words(_statistics(row))}" for row in rows]
    return lines


def _statistics(row: dict[str, Any]) -> Any:  # noqa: ANN401
    from scopelake.query.card_statistics import Statistics

    given = {k: v for k, v in row.items() if k not in ("corpus", "state", "role", "kind")}
    return Statistics(**given)


def _roles(card: FeatureCard) -> list[str]:
    rows = card.by_role.to_pylist()
    if len({row["role"] for row in rows}) < 2:
        return []
    return [
        f"{row['role']:<6} {row['kind']:<9} {share(row['density']):>8} of "
        f"{row['n_tokens']:,} tokens{_strength(row)}"
        for row in rows
    ]


def _strength(row: Mapping[str, Any]) -> str:
    """Mean and max; nothing where it fires on no such token, and there is neither."""
    if not row["firings"]:
        return ""
    return f", mean {number(row['mean'])}, max {number(row['max'])}"


def _positions(card: FeatureCard) -> list[str]:
    values, width = densities(card.by_position, _COLUMNS)
    if not any(values):
        return []
    n = card.by_position.num_rows
    each = "" if width == 1 else f", {width} positions a bar"
    return [f"0 {bars(values)} {n - 1}  (up to {share(max(values))}{each})"]


def _decoder(card: FeatureCard) -> list[str]:
    lines = []
    for side, name in (("top", "promotes"), ("bottom", "suppresses")):
        shown = [
            f"{_token(r)} {r['logit']:.3g}" for r in card.tokens.to_pylist() if r["side"] == side
        ]
        lines += [f"{name:<10} {'  '.join(shown)}"] if shown else []
    norms = [
        f"{name} norm {number(value)}"
        for name, value in (("decoder", card.decoder_norm), ("encoder", card.encoder_norm))
        if value is not None
    ]
    return lines + ([", ".join(norms)] if norms else [])


def _token(row: dict[str, Any]) -> str:
    return f"#{row['token_id']}" if row["token"] is None else f"[{visible(row['token'])}]"


def _neighbors(card: FeatureCard) -> list[str]:
    return [
        f"{row['cosine']:6.3f}  {row['other_feature']:7d}  "
        f"{'' if row['other_sae'] == card.sae else row['other_sae']}".rstrip()
        for row in card.neighbors.to_pylist()
    ]


def _coactive(card: FeatureCard) -> list[str]:
    return [] if card.coactive is None else card.coactive.to_text().splitlines()[1:]
