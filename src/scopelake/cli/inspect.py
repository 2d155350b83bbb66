"""The verb that runs one prompt: inspect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import scopelake
from scopelake.cli.options import add_coders, add_placement, add_replies, placement
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.names import FIRING_RANKINGS


def _add_inspect(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "inspect", _inspect, "run one prompt and show what fires in it")
    add_lake(parser)
    parser.add_argument("prompt", nargs="?", help="the text, or with --chat what the user says")
    parser.add_argument(
        "--chat", nargs="?", const=True, metavar="FILE",
        help="wrap the prompt in the chat template; or read messages from this JSON file",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="folder or hub id of a Gemma 3")
    add_coders(parser)
    add_replies(parser)
    parser.add_argument(
        "-k", type=int, default=10, help="at most so many for each SAE and token; 10 by default"
    )
    parser.add_argument(
        "--by", choices=FIRING_RANKINGS, default="activation",
        help="what ranks firings: activation; it over the feature's mean or max; or its surprise",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="CORPUS",
        help="whose firings give percentiles and say what is usual; by default the largest on "
        "which all the SAEs are complete",
    )  # fmt: skip
    parser.add_argument(
        "--no-keep", action="store_true", help="leave nothing in the lake; it is kept by default"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to this file")
    parser.add_argument("--overwrite", action="store_true", help="FILE may be there already")
    add_placement(parser)
    add_json(parser)


def _prompt(text: str | None, chat: str | bool | None) -> str | Sequence[Mapping[str, str]]:
    """Return the prompt that a text and ``--chat`` mean.

    Raises:
        InvalidArgumentError: there is none, or two.
        CorpusSourceError: the file holds no messages.
    """
    if isinstance(chat, str):
        from scopelake.ingest.sources import read_messages

        if text is not None:
            raise InvalidArgumentError(
                f"a prompt and the messages in {chat} were asked for; one prompt is inspected at a "
                "time; give one of them, or --chat without a file behind the prompt"
            )
        return read_messages(chat)
    if text is None:
        raise InvalidArgumentError(
            "inspect was asked for no prompt; give a text, or the messages of a chat in a JSON "
            "file with --chat FILE"
        )
    return [{"role": "user", "content": text}] if chat else text


def _inspect(arguments: argparse.Namespace) -> None:
    prompt = _prompt(arguments.prompt, arguments.chat)
    if arguments.html is not None:
        from scopelake.cli.output import check_new
        from scopelake.query.inspection_page import check_file

        if not arguments.html.is_dir():
            check_new(arguments.html, overwrite=arguments.overwrite)
        check_file(arguments.html)
    elif arguments.overwrite:
        raise InvalidArgumentError(
            "--overwrite was asked for without --html FILE; it says that FILE may be there "
            "already; give both"
        )
    found = scopelake.open(arguments.lake, arguments.snapshot).inspect(
        prompt,
        model=arguments.model,
        saes=arguments.saes,
        generate=arguments.generate,
        temperature=arguments.temperature,
        seed=arguments.seed,
        k=arguments.k,
        by=arguments.by,
        against=arguments.against,
        keep=not arguments.no_keep,
        **placement(arguments),
    )
    if arguments.html is not None:
        found.to_html(arguments.html)
    if arguments.json:
        print(found.to_json())
    elif arguments.html is None:
        print(found.to_text(color=sys.stdout.isatty()))
    else:
        print(f"wrote {arguments.html}")


VERBS: Final = (_add_inspect,)
