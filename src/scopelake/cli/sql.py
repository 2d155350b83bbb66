"""The verb sql: one query, a prompt, an init file, or what the views hold."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import scopelake
from scopelake.cli.parsing import add_lake, add_verb
from scopelake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from scopelake.lake import Lake

FORMATS: Final = ("table", "csv", "json", "jsonl", "parquet", "arrow")


def _add_sql(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "sql", _sql, "run SQL over the lake's views, or open a prompt")
    add_lake(parser)
    parser.add_argument("query", nargs="?",
                        help="a SELECT; without one a prompt opens, or stdin is read")  # fmt: skip
    parser.add_argument(
        "--format", choices=FORMATS, help="of the rows; table by default, jsonl one object a line"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format jsonl")
    parser.add_argument("--output", metavar="FILE", help="write the rows there; - is stdout")
    parser.add_argument("--overwrite", action="store_true", help="FILE may be there already")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop a query after them")
    parser.add_argument("--memory", metavar="SIZE", help="most memory of a query, such as 2GB")
    parser.add_argument("--init", nargs="?", const="-", metavar="FILE",
                        help="write SQL that makes views and macros in any DuckDB client; - or "
                             "nothing is stdout")  # fmt: skip
    parser.add_argument("--describe", nargs="?", const="", metavar="VIEW",
                        help="say what the views, or one of them, hold")  # fmt: skip
    parser.add_argument("--no-history", action="store_true", help="of the prompt: keep no history")


def _sql(arguments: argparse.Namespace) -> None:
    lake = scopelake.open(arguments.lake, arguments.snapshot)
    if arguments.init is not None:
        _write_init(lake, arguments)
    elif arguments.describe is not None:
        _describe(lake, arguments)
    elif arguments.query is None and sys.stdin.isatty():
        from scopelake.cli.prompt import prompt

        prompt(lake, keep_history=not arguments.no_history, timeout=arguments.timeout,
               memory=arguments.memory, mode=_format(arguments))  # fmt: skip
    else:
        query = sys.stdin.read() if arguments.query is None else arguments.query
        if not query.strip():
            raise InvalidArgumentError(
                "sql was asked for no query; nothing came from stdin; give one, or --init"
            )
        _answer(lake, query, arguments)


def _answer(lake: Lake, query: str, arguments: argparse.Namespace) -> None:
    from scopelake.cli.output import check_output, write

    form = _format(arguments)
    check_output(form, arguments.output, overwrite=arguments.overwrite)
    limits = {"timeout": arguments.timeout, "memory": arguments.memory}
    write(lake.sql_batches(query, **limits), form, arguments.output)


def _format(arguments: argparse.Namespace) -> str:
    if arguments.json and arguments.format not in (None, "jsonl"):
        raise InvalidArgumentError(
            f"--json and --format {arguments.format} were asked for; --json is one object a line; "
            "give one of the two"
        )
    return "jsonl" if arguments.json else arguments.format or "table"


def _describe(lake: Lake, arguments: argparse.Namespace) -> None:
    from scopelake.cli.output import check_output, write

    form = _format(arguments)
    check_output(form, arguments.output, overwrite=arguments.overwrite)
    table = lake.views(arguments.describe or None)
    write(table.to_reader(), form, arguments.output)


def _write_init(lake: Lake, arguments: argparse.Namespace) -> None:
    from scopelake.cli.output import check_output

    text = lake.sql_init()
    if arguments.init == "-":
        print(text)
        return
    check_output("init", arguments.init, overwrite=arguments.overwrite)
    Path(arguments.init).write_text(text, encoding="utf-8")


VERBS: Final = (_add_sql,)
