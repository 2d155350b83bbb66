"""What the verbs share: their parsers and the printing of results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from scopelake.render import to_json


def add_verb(
    verbs: Any,  # noqa: ANN401
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    help_text: str,  # noqa: ANN401
) -> argparse.ArgumentParser:
    """Add a verb that `run` carries out; return its parser."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help_text, description=help_text[0].upper() + help_text[1:] + "."
    )
    parser.set_defaults(run=run)
    return parser


def add_lake(parser: argparse.ArgumentParser, *, snapshot: bool = True) -> None:
    """Add the lake's folder, and for verbs that read also the snapshot."""
    parser.add_argument("lake", help="folder of the lake, or s3://<bucket>/<prefix>")
    if snapshot:
        parser.add_argument("--snapshot", type=int, help="read this snapshot, not the latest")


def add_json(parser: argparse.ArgumentParser, each: str = "") -> None:
    """Add the choice of JSON, with one object for `each`."""
    what = f"one JSON object {each}" if each else "print JSON"
    parser.add_argument("--json", action="store_true",
                        help=f"{what}; NaN and infinities are null, blobs hexadecimal")  # fmt: skip


def show(result: Any, as_json: bool) -> None:  # noqa: ANN401
    """Print a result of a query, for people or a JSON object a row."""
    if as_json:
        for row in result.table.to_pylist():
            print(to_json(row))
        if result.note:
            print(f"scopelake: {result.note}", file=sys.stderr)
    else:
        print(result.to_text(color=sys.stdout.isatty()))
