"""An `Inspection` as one self-contained HTML page: nothing is fetched, nothing is run but its own.

The data are JSON inside the page; a few lines of JavaScript (`inspection_script`) draw the grid.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import InvalidArgumentError
from scopelake.query.firing import MEANINGS
from scopelake.query.inspection_script import BODY, SCRIPT, STYLE
from scopelake.query.inspection_text import heading, mean_unexplained, places, short_names
from scopelake.store.outside import check_outside

if TYPE_CHECKING:
    from scopelake.query.inspection import Inspection


def page(found: Inspection) -> str:
    """Return the page."""
    title = "scopelake: an inspected prompt"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>{BODY}\n"
        f'<script type="application/json" id="data">{_embedded(page_data(found))}</script>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def page_data(found: Inspection) -> dict[str, Any]:
    """Return what the page shows: columns of equal length, features and places by their number."""
    columns = places(found)
    names = short_names(sorted({sae for sae, _ in columns}))
    means = mean_unexplained(found)
    number = {place: i for i, place in enumerate(columns)}
    features: dict[tuple[str, int], int] = {}
    about: list[dict[str, Any]] = []
    fired: dict[str, list[Any]] = {name: [] for name in (
        "position", "place", "about", "activation", "score", "percentile", "error")}  # fmt: skip
    for row in found.firings.to_pylist():
        key = (row["sae"], row["feature"])
        if key not in features:
            features[key] = len(about)
            about.append({name: row[name] for name in ("feature", "label", "top_tokens")})
        fired["place"].append(number[row["sae"], row["layer"]])
        fired["about"].append(features[key])
        for name in ("position", "activation", "score", "percentile"):
            fired[name].append(row[name])
        fired["error"].append(row["percentile_error"])
    errors = found.errors.to_pylist()
    return {
        "heading": heading(found),
        "by": found.by,
        "meaning": MEANINGS.get(found.by, found.by),
        "against": found.against,
        "tokens": found.tokens.to_pylist(),
        "places": [
            {"sae": sae, "short": names[sae], "layer": layer, "mean": means[sae, layer]}
            for sae, layer in columns
        ],
        "about": about,
        "firings": fired,
        "errors": {
            "position": [row["position"] for row in errors],
            "place": [number[row["sae"], row["layer"]] for row in errors],
            "unexplained": [row["unexplained"] for row in errors],
        },
    }


def check_file(path: str | Path) -> Path:
    """Refuse a file that could not be written, before the work whose result goes to it.

    Raises:
        InvalidArgumentError: its folder is missing, it is a folder or in a lake, or it may not be
            written.
    """
    file = check_outside(path)
    is_new = not file.exists()
    try:
        with file.open("ab"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        raise _not_written(file, error) from error
    return file


def write_page(path: str | Path, text: str) -> Path:
    """Write a page whole or not at all.

    Raises:
        InvalidArgumentError: the file cannot be written.
    """
    file = check_file(path)
    made = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        made.write_text(text, encoding="utf-8")
        made.replace(file)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise _not_written(file, error) from error
    return file


def _not_written(file: Path, error: OSError) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"a page in {file} was asked for; it cannot be written ({error.strerror}); name another "
        "file, in a folder that is there"
    )


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that no HTML parser takes for a tag, and no reader for a link."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.replace("//", "\\/\\/")
