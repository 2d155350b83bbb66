"""Verbs that keep a lake in order: verify, compact, vacuum."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.render import to_json


def _add_verify(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "verify", _verify,
                      "re-read every file of the latest snapshot; exit status 1 if one is not "
                      "right")  # fmt: skip
    add_lake(parser, snapshot=False)
    parser.add_argument("--snapshot", type=int, metavar="N",
                        help="the files of this snapshot, not of the latest; not with "
                        "--repair")  # fmt: skip
    parser.add_argument("--all-snapshots", action="store_true",
                        help="the files that any snapshot names, each once; not with --snapshot "
                        "or --repair")  # fmt: skip
    parser.add_argument("--repair", action="store_true",
                        help="make again what can be, take out the rest; of the latest snapshot "
                        "only")  # fmt: skip
    add_json(parser)


def _verify(arguments: argparse.Namespace) -> int:
    from scopelake.progress import bytes_progress

    _check_repair(arguments)
    with bytes_progress("verify") as progress:
        found = scopelake.verify(
            arguments.lake,
            arguments.snapshot,
            all_snapshots=arguments.all_snapshots,
            progress=progress,
        )
    print(to_json(found.to_dict()) if arguments.json else found)
    if arguments.repair:
        from scopelake.store.lake_store import LakeStore
        from scopelake.store.repair import repair_unopened

        early = repair_unopened(LakeStore.open(arguments.lake).root, found)
        if early or found.broken:
            done = early or scopelake.open(arguments.lake).repair(found)
            print(to_json(asdict(done)) if arguments.json else done)
    return 0 if found.is_whole else 1


def _check_repair(arguments: argparse.Namespace) -> None:
    """Refuse a repair of anything but the latest snapshot before a byte is read."""
    for option, is_given in (
        (f"--snapshot {arguments.snapshot}", arguments.snapshot is not None),
        ("--all-snapshots", arguments.all_snapshots),
    ):
        if arguments.repair and is_given:
            raise InvalidArgumentError(
                f"--repair and {option} were asked for; a repair changes the latest snapshot, and "
                "older ones stay as they are; leave one of the two out"
            )


def _add_compact(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "compact", _compact, "merge the files of many shards into few")
    add_lake(parser, snapshot=False)
    parser.add_argument("--scheduler", metavar="ADDRESS",
                        help="address of a dask scheduler whose workers do it")  # fmt: skip
    add_json(parser)


def _compact(arguments: argparse.Namespace) -> None:
    from scopelake.progress import step_progress

    with step_progress() as progress:
        done = scopelake.open(arguments.lake).compact(progress, scheduler=arguments.scheduler)
    print(to_json(asdict(done)) if arguments.json else done)


def _add_vacuum(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "vacuum", _vacuum, "delete old snapshots and what nobody needs")
    add_lake(parser, snapshot=False)
    parser.add_argument("--keep", type=_duration, default=timedelta(days=30), metavar="TIME",
                        help="keep snapshots no older than that (default 30d)")  # fmt: skip
    parser.add_argument("--keep-snapshots", type=int, default=1, metavar="N",
                        help="keep the latest N besides, of any age (default 1)")  # fmt: skip
    parser.add_argument("--grace", type=_duration, default=timedelta(days=1), metavar="TIME",
                        help="leave files that no snapshot names alone for so long (default "
                        "1d); an ingest that takes longer to commit one fails")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what it would delete")
    add_json(parser)


def _vacuum(arguments: argparse.Namespace) -> None:
    done = scopelake.open(arguments.lake).vacuum(
        arguments.keep,
        keep_snapshots=arguments.keep_snapshots,
        grace=arguments.grace,
        dry_run=arguments.dry_run,
    )
    print(to_json(asdict(done)) if arguments.json else done)


def _duration(text: str) -> timedelta:
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    if text[-1:] not in units or not text[:-1].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30d, 12h, 45m or 10s")
    try:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than any lake is old") from error


VERBS: Final = (_add_verify, _add_compact, _add_vacuum)
