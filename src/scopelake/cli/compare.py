"""The verb that compares two sets of tokens: compare."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

import scopelake
from scopelake.cli.parsing import add_json, add_lake, add_verb
from scopelake.errors import InvalidArgumentError
from scopelake.names import SITES
from scopelake.render import to_json

_TESTS: Final = ("rank-sum", "signed-rank")
_VALUES: Final = ("rate", "activation")
_PARTS: Final = {
    "corpus": "only of this corpus",
    "model": "firings of the SAEs of this model: its name, or an ending of it",
    "sae": "firings of this SAE: its name, or a unique ending of it",
}


def _add_compare(verbs: Any) -> None:  # noqa: ANN401
    parser = add_verb(verbs, "compare", _compare, "show which features separate two sets of tokens")
    add_lake(parser)
    for side in ("a", "b"):
        parser.add_argument(
            f"--{side}", metavar="WHERE",
            help=f"set {side}: SQL predicate over tokens, e.g. \"role = 'user'\"",
        )  # fmt: skip
        for part, text in _PARTS.items():
            parser.add_argument(
                f"--{side}-{part}", metavar=part.upper(), help=f"set {side}: {text}"
            )
    parser.add_argument("--layer", type=int, action="append", default=[],
                        help="only SAEs of this layer; may be given again")  # fmt: skip
    parser.add_argument("--site", choices=SITES, help="only SAEs of this site")
    parser.add_argument("--sae", action="append", default=[],
                        help="only SAEs of this name or ending; may be given again")  # fmt: skip
    parser.add_argument("--corpus", help="of sets that name none; all of them by default")
    parser.add_argument("--unit", metavar="SQL",
                        help="what is independent of each other, e.g. \"metadata ->> 'prompt'\"; "
                             "by default documents are")  # fmt: skip
    parser.add_argument(
        "--test", choices=_TESTS,
        help="between documents, or within those that have tokens of both; by default what fits",
    )  # fmt: skip
    parser.add_argument("--by", choices=_VALUES, default="rate",
                        help="what ranks documents: firings a token (rate, the default), or mean "
                             "activation over all tokens")  # fmt: skip
    parser.add_argument("--confidence", type=float, default=0.95,
                        help="of the intervals; 0.95 by default")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0,
                        help="of which part of a document is tested; 0 by default")  # fmt: skip
    parser.add_argument("-k", type=int, default=20, help="features that are shown; 20 by default")
    parser.add_argument("--q", type=float,
                        help="only features with a q-value of at most this")  # fmt: skip
    parser.add_argument("--higher", choices=("a", "b"),
                        help="only features that documents have more of in this set")  # fmt: skip
    add_json(parser)


def _compare(arguments: argparse.Namespace) -> None:
    from scopelake.query.comparison import check_top
    from scopelake.query.token_sets import TokenSet

    check_top(arguments.k, arguments.q, arguments.higher)
    sides = [_given(arguments, side) for side in ("a", "b")]
    _check_given(sides)
    sets = [TokenSet(*parts) for parts in sides]
    names = ("layer", "site", "sae", "corpus", "unit", "test", "by", "confidence", "seed")
    found = scopelake.open(arguments.lake, arguments.snapshot).compare(
        *sets, **{name: getattr(arguments, name) for name in names}
    )
    chosen = {"q": arguments.q, "higher": arguments.higher}
    if arguments.json:
        print(to_json(found.to_dict(arguments.k, **chosen)))
    else:
        print(found.to_text(arguments.k, color=sys.stdout.isatty(), **chosen))


def _given(arguments: argparse.Namespace, side: str) -> list[str | None]:
    return [getattr(arguments, side), *(getattr(arguments, f"{side}_{p}") for p in _PARTS)]


def _check_given(sides: list[list[str | None]]) -> None:
    """Refuse a set of which nothing is said: it would be all tokens, those of the other too."""
    lacking = [n for n, parts in zip("ab", sides, strict=True) if all(p is None for p in parts)]
    if lacking:
        given = " and ".join(f"set {name}" for name in lacking)
        raise InvalidArgumentError(
            f"two sets of tokens were to be compared; {given} {'were' if lacking[1:] else 'was'} "
            f"not given; give {' and '.join(f'--{name}' for name in lacking)}"
        )


VERBS: Final = (_add_compare,)
