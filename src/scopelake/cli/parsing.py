"""What the verbs share: their parsers and the printing of results."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from scopelake.render import to_json

_ARGUMENT: Final = re.compile(
    r"""'[^']*'|"[^"]*"|`[^`]*`|(?<![\w./-])(?P<name>[a-z_]+)\b(?:(?P<equals>=)|(?![/.-]\w))"""
)
"""A word, perhaps with a value; what is quoted is skipped, for it is what a user typed."""
_LEFT_OUT: Final = re.compile(r"\b(made without|leave) ([a-z_]+)\b")
"""An argument that is named without a value."""
_QUOTED: Final = re.compile(r"(?<!\S)(--[a-z-]+) '([\w.:/@-]+)'")
"""An option with a value that a shell takes without quotes."""
_SPELT: Final = {
    "saes": "--sae", "others": "--other", "k": "-k", "n_contexts": "--contexts",
    "n_bands": "--bands",
}  # fmt: skip
_VERBS: Final = (
    "add_corpus", "append_corpus", "import_examples", "check_sae", "add_neighbors",
    "import_delphi",
)  # fmt: skip


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


def spelt(message: str, options: Iterable[str]) -> str:
    """Return a message of the library with arguments and verbs as they are spelt in a shell.

    Args:
        message: of an error.
        options: names of the verb's arguments, as the library knows them.
    """
    known = {name: f"--{name.replace('_', '-')}" for name in options} | _SPELT

    def spell(found: re.Match[str]) -> str:
        name, equals = found["name"], found["equals"]
        if name in _VERBS:
            return name.replace("_", "-") + (equals or "")
        if name not in known or not (equals or "_" in name):
            return found[0]
        if equals and message[found.end() :].startswith("True"):
            return f"{known[name]}\0"
        return f"{known[name]} " if equals else known[name]

    def name_it(found: re.Match[str]) -> str:
        return f"{found[1]} {known.get(found[2], found[2])}"

    message = message.replace("None for all", "all")
    message = _LEFT_OUT.sub(name_it, message)
    return _QUOTED.sub(r"\1 \2", _ARGUMENT.sub(spell, message).replace("\0True", ""))


def show(result: Any, as_json: bool) -> None:  # noqa: ANN401
    """Print a result of a query, for people or a JSON object a row."""
    if as_json:
        for row in result.table.to_pylist():
            print(to_json(row))
        if result.note:
            print(f"scopelake: {result.note}", file=sys.stderr)
    else:
        print(result.to_text(color=sys.stdout.isatty()))
