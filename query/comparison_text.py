"""A comparison as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import exp
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from scopelake.names import counted, visible
from scopelake.query.card_shapes import number, share
from scopelake.query.document_windows import UNTESTED

if TYPE_CHECKING:
    from scopelake.query.comparison import Comparison, SetSize

Row = Mapping[str, Any]

_DISCOVERY: Final = 0.05
_TESTS: Final = {
    "rank-sum": "rank-sum test (Mann-Whitney) of {0:,} against {1:,} {2}s",
    "signed-rank": "signed-rank test (Wilcoxon) within {0:,} {2}s",
}
_HEADS: Final = ("q", "AUC", "odds ratio", "rate in a", "rate in b", "mean in a", "mean in b")


def comparison_text(found: Comparison, chosen: pa.Table, shown: pa.Table, *, color: bool) -> str:
    """Return a comparison as lines.

    Args:
        found: the comparison.
        chosen: rows of its table.
        shown: those of them that are shown.
        color: whether names of sets stand out.
    """
    bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    sizes = (("a", found.a), ("b", found.b))
    lines = [f"{bold}{name}{plain}  {_size(size, found)}" for name, size in sizes]
    lines.append(_summary(found))
    rows = shown.to_pylist()
    cells = [_HEADS, *(_numbers(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADS))]
    tails = ["feature", *(_name(row, found) for row in rows)]
    lines += [
        "  ".join([*(cell.rjust(w) for cell, w in zip(line, widths, strict=True)), tail])
        for line, tail in zip(cells, tails, strict=True)
    ]
    more = chosen.num_rows - len(rows)
    lines += [f"... and {more:,} more features"] if more else []
    lines += [f"({note})" for note in _last_notes(found)]
    return "\n".join(lines)


def comparison_html(found: Comparison) -> str:
    """Return a comparison as HTML, its first features as a table."""
    head = "".join(f"<th>{name}</th>" for name in (*_HEADS, "feature"))
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _numbers(row))}"
        f'<td style="text-align:left">{escape(_name(row, found))}</td></tr>'
        for row in found.top().to_pylist()
    )
    sizes = (("a", found.a), ("b", found.b))
    said = [f"<b>{name}</b> {escape(_size(size, found))}" for name, size in sizes]
    said.append(escape(_summary(found)))
    notes = "".join(f"<br>{escape(note)}" for note in _last_notes(found))
    return f"{'<br>'.join(said)}<table><tr>{head}</tr>{body}</table>{notes}"


def _last_notes(found: Comparison) -> list[str]:
    """Return the notes below the rows: all but why nothing was tested, which is above them."""
    return [note for note in found.notes if not note.startswith(UNTESTED)]


def _size(size: SetSize, found: Comparison) -> str:
    documents = counted(size.n_documents, _noun(found))
    corpora = ", ".join(size.corpora)
    return visible(f"{size.n_tokens:,} tokens of {documents} of {corpora}: {size.asked}")


def _noun(found: Comparison) -> str:
    return "document" if found.unit is None else "unit"


def _summary(found: Comparison) -> str:
    """Return what was tested, and what came of it, on a line."""
    n = found.table.num_rows
    if found.test is None:
        why = "".join(f" ({note})" for note in found.notes if note.startswith(UNTESTED))
        return f"{n:,} features, none tested{why}; by odds ratio, whose order is no finding"
    q = found.table["q"]
    n_found = int(pc.sum(pc.less_equal(q, _DISCOVERY)).as_py() or 0)
    silent = pc.sum(pc.equal(pc.add(found.table["firings_a"], found.table["firings_b"]), 0))
    n_silent = int(silent.as_py() or 0)
    text = _TESTS[found.test].format(*found.n_documents, _noun(found))
    text += f": {found.n_tested:,} of {n:,} features tested, {n_found:,} with q <= {_DISCOVERY:g}"
    text += f"; {n_silent:,} fire in neither set" if n_silent else ""
    n_outside = n - found.n_tested - n_silent
    text += f"; {n_outside:,} not in what is tested" if n_outside else ""
    shares = [share(tested / size.n_tokens) for tested, size in
              zip(found.tested_tokens, (found.a, found.b), strict=True)]  # fmt: skip
    text += "; ranked by mean activation over all tokens" if found.by == "activation" else ""
    text += f"; units are {visible(found.unit)}" if found.unit else ""
    return f"{text} ({shares[0]} of a's tokens and {shares[1]} of b's are in the test)"


def _numbers(row: Row) -> tuple[str, ...]:
    odds = [row[f"log_odds{end}"] for end in ("", "_low", "_high")]
    return (
        _short(row["q"]),
        _with_interval([row[f"auc{end}"] for end in ("", "_low", "_high")]),
        _with_interval([None if value is None else _power(value) for value in odds]),
        share(row["rate_a"]),
        share(row["rate_b"]),
        number(row["mean_a"]) if row["mean_a"] is not None else "-",
        number(row["mean_b"]) if row["mean_b"] is not None else "-",
    )


def _with_interval(values: list[float | None]) -> str:
    if values[0] is None:
        return "-"
    text = f"{values[0]:.3g}"
    if values[1] is None or values[2] is None:
        return text
    return f"{text} [{values[1]:.3g}, {values[2]:.3g}]"


def _short(q: float | None) -> str:
    return "-" if q is None else f"{q:.2g}"


def _power(value: float) -> float:
    return exp(min(value, 700.0))


def _name(row: Row, found: Comparison) -> str:
    """Return which feature it is, and what it is about."""
    parts = [str(row["feature"])]
    if row["other_sae"] != row["sae"]:
        parts.append(f"and {row['other_feature']}, cosine {row['cosine']:.3f}")
    if len(found.saes) > 1:
        parts.append(f"of {row['sae']}")
    if row["label"] is not None:
        parts.append(visible(row["label"]))
    elif row["promotes"]:
        parts.append(" ".join(f"[{visible(token)}]" for token in row["promotes"]))
    return "  ".join(parts)
