"""Verbs that begin a lake: demo, create."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_lake, add_verb


def _add_demo(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "demo", _demo, "build a lake from real text with the tiny model")
    parser.add_argument(
        "lake",
        type=Path,
        nargs="?",
        default=Path("demo-lake"),
        help="folder of the lake; demo-lake by default",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from scopelake.demo import run_demo

    run_demo(arguments.lake)


def _add_create(verbs: Any) -> None:  # noqa: ANN401
    add_lake(add_verb(verbs, "create", _create, "create an empty lake"), snapshot=False)


def _create(arguments: argparse.Namespace) -> None:
    lake = scopelake.create(arguments.lake)
    print(f"created an empty lake in {lake.url}")


VERBS: Final = (_add_demo, _add_create)
