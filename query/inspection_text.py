"""An `Inspection` in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final

from scopelake.names import counted, visible
from scopelake.query.firing import MEANINGS

if TYPE_CHECKING:
    from scopelake.query.inspection import Inspection

Place = tuple[str, int]
"""An SAE and a layer: several of a coder that reads several."""

Row = dict[str, Any]

_TOKENS: Final = 5
"""Promoted tokens that stand for a feature without a label."""


def places(found: Inspection) -> list[Place]:
    """Return the SAEs with their layers, in the order of the layers."""
    columns = (found.errors[name].to_pylist() for name in ("sae", "layer"))
    fired = (found.firings[name].to_pylist() for name in ("sae", "layer"))
    there = dict.fromkeys([*zip(*columns, strict=True), *zip(*fired, strict=True)])
    return sorted(there, key=lambda place: (place[1], place[0]))


def short_names(names: list[str]) -> dict[str, str]:
    """Return of each name its ending of two parts, or all of it where several end so."""
    ends = {name: "/".join(name.split("/")[-2:]) for name in names}
    ambiguous = {end for end in ends.values() if list(ends.values()).count(end) > 1}
    return {name: name if end in ambiguous else end for name, end in ends.items()}


def by_cell(found: Inspection) -> dict[tuple[int, Place], list[Row]]:
    """Return the firings of each position and place, strongest first."""
    cells: dict[tuple[int, Place], list[Row]] = {}
    for row in found.firings.to_pylist():
        cells.setdefault((row["position"], (row["sae"], row["layer"])), []).append(row)
    return cells


def unexplained(found: Inspection) -> dict[tuple[int, Place], float | None]:
    """Return the share that is unexplained at each position and place."""
    return {
        (row["position"], (row["sae"], row["layer"])): row["unexplained"]
        for row in found.errors.to_pylist()
    }


def mean_unexplained(found: Inspection) -> dict[Place, float | None]:
    """Return the mean of each place over the tokens."""
    sums: dict[Place, list[float]] = {}
    for (_, place), value in unexplained(found).items():
        if value is not None:
            sums.setdefault(place, []).append(value)
    means = {place: sum(values) / len(values) for place, values in sums.items()}
    return {place: means.get(place) for place in places(found)}


def heading(found: Inspection) -> list[str]:
    """Return in words what was inspected, how it is ranked and with what it is compared."""
    n_saes = len({sae for sae, _ in places(found)})
    kept = "not kept" if found.corpus is None else f"kept as corpus {found.corpus}"
    lines = [
        f"{counted(found.tokens.num_rows, 'token')}, {found.model}, {counted(n_saes, 'SAE')}; "
        f"{kept}",
        f"ranked by {MEANINGS.get(found.by, found.by)}",
    ]
    if found.against is not None:
        lines.append(f"percentiles: among each feature's firings on {found.against}")
    return lines + ([found.note] if found.note else [])


def inspection_text(found: Inspection, *, color: bool) -> str:
    """Return the inspection token by token."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    names = short_names(sorted({sae for sae, _ in places(found)}))
    cells, misses = by_cell(found), unexplained(found)
    lines = [*heading(found), "", "unexplained, mean over tokens:"]
    lines += [
        f"{_share(share):>8s}  layer {layer}  {names[sae]}"
        for (sae, layer), share in mean_unexplained(found).items()
    ]
    for token in found.tokens.to_pylist():
        position = token["position"]
        lines += ["", f"{bold}{position:6d}  {visible(token['token'])}{plain}{_spoken(token)}"]
        for place in places(found):
            firings = cells.get((position, place), [])
            share = _share(misses.get((position, place)))
            nothing = "" if firings else "  nothing fires"
            lines.append(f"{share:>16s}  layer {place[1]}  {names[place[0]]}{nothing}")
            lines += [" " * 16 + _firing(found, row) for row in firings]
    return "\n".join(lines)


def meaning(row: Mapping[str, Any]) -> str:
    """Return a firing's label, or else what its decoder promotes, quoted."""
    if row["label"] is not None:
        return visible(row["label"])
    return " ".join(f"'{visible(token)}'" for token in (row["top_tokens"] or [])[:_TOKENS])


def percentile(row: Mapping[str, Any], *, compared: bool) -> str:
    """Return a firing's percentile in a few characters; ``new`` where its feature has none."""
    if not compared:
        return ""
    if row["percentile"] is None:
        return "new"
    error = row["percentile_error"]
    digits = 0 if error >= 1 else 1
    return f"p{row['percentile']:.{digits}f}" + (f"±{error:.{digits}f}" if error else "")


def inspection_table(found: Inspection) -> str:
    """Return tokens by layers as an HTML table, shaded by what is unexplained."""
    names = short_names(sorted({sae for sae, _ in places(found)}))
    cells, misses, columns = by_cell(found), unexplained(found), places(found)
    head = "".join(
        f'<th title="{escape(sae, quote=True)}">{layer}<br><small>{escape(names[sae])}</small></th>'
        for sae, layer in columns
    )
    body = []
    for token in found.tokens.to_pylist():
        at = token["position"]
        shown = "".join(_cell(found, cells.get((at, p), []), misses.get((at, p))) for p in columns)
        piece = f"<bdi>{escape(visible(token['token']))}</bdi>{escape(_spoken(token))}"
        body.append(f'<tr><td>{at}</td><td style="text-align:left">{piece}</td>{shown}</tr>')
    return (
        f"<p>{'<br>'.join(map(escape, heading(found)))}<br>cells: the first feature, and the share "
        f"that is unexplained</p><table><tr><th></th><th>token</th>{head}</tr>{''.join(body)}"
        "</table>"
    )


def _cell(found: Inspection, firings: list[Row], share: float | None) -> str:
    title = "\n".join(_firing(found, row).strip() for row in firings)
    first = str(firings[0]["feature"]) if firings else ""
    alpha = 0.0 if share is None else min(share, 1.0)
    return (
        f'<td title="{escape(title, quote=True)}" style="background:rgba(70,130,220,{alpha:.2f})">'
        f"{first}<br><small>{_share(share)}</small></td>"
    )


def _firing(found: Inspection, row: Row) -> str:
    score = "" if found.by == "activation" else f"{_score(row['score']):>8s}  "
    is_bos = found.tokens["kind"][row["position"]].as_py() == "bos"
    rank = percentile(row, compared=found.against is not None and not is_bos)
    return (
        f"{score}{row['activation']:10.4g}  {rank:>7s}  {row['feature']:7d}  {meaning(row)}"
    ).rstrip()


def _score(score: float | None) -> str:
    return "?" if score is None else f"{score:.3g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _spoken(token: Mapping[str, Any]) -> str:
    """Return who speaks a token and what it is, where that is not plain text."""
    said = [] if token["role"] == "none" else [token["role"]]
    said += [] if token["kind"] in ("content", "bos") else [token["kind"]]
    return f"  ({', '.join(said)})" if said else ""
