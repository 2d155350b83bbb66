"""Verbs that keep a lake in order: verify."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_lake, add_verb


def _add_verify(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "verify", _verify,
                      "re-read every file; exit status 1 if one is not right")  # fmt: skip
    add_lake(parser)
    parser.add_argument("--repair", action="store_true",
                        help="take damaged shards out, to be ingested again")  # fmt: skip
    parser.add_argument("--json", action="store_true")


def _verify(arguments: argparse.Namespace) -> int:
    from scopelake.progress import bytes_progress

    lake = scopelake.open(arguments.lake, arguments.snapshot)
    with bytes_progress("verify") as progress:
        found = lake.verify(progress)
    print(json.dumps(found.to_dict()) if arguments.json else found)
    if arguments.repair and found.broken:
        done = lake.repair(found)
        print(json.dumps(asdict(done)) if arguments.json else done)
    return 0 if found.is_whole else 1


VERBS: Final = (_add_verify,)
