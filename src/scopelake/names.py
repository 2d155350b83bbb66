"""Names of sites, kinds, roles and files: pure strings, no IO.

A *site* is where in a decoder layer a tensor is read. A *coder* (users say SAE) is
named ``<repo>/<family>/<folder>``. Nothing here opens a file or imports a package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Final, Literal, TypeVar, get_args

from scopelake.errors import InvalidArgumentError

Site = Literal["resid_post", "attn_out", "mlp_out", "mlp_in"]
"""Where in a layer: residual after it; input of ``o_proj``; after the post-feedforward
norm; after the pre-feedforward norm."""

SITES: Final[tuple[Site, ...]] = get_args(Site)

FiringRanking = Literal["activation", "mean", "max", "surprise"]
"""What ranks firings: the activation, it over its feature's mean or max, or its surprise."""

FIRING_RANKINGS: Final[tuple[FiringRanking, ...]] = get_args(FiringRanking)

ContextRanking = Literal["max", "mean", "sum", "count"]
"""What ranks contexts: a feature's strongest firing in one, or the mean, sum or number of all."""

CONTEXT_RANKINGS: Final[tuple[ContextRanking, ...]] = get_args(ContextRanking)

Sampling = Literal["quantile", "uniform"]
"""How contexts are sampled: from bands of equally many, or of equal width of activation."""

SAMPLINGS: Final[tuple[Sampling, ...]] = get_args(Sampling)

KINDS: Final = ("content", "template", "bos", "generated")
"""What a token is; stored as its index, int8."""

ROLES: Final = ("none", "user", "model", "system", "tool")
"""Who speaks a token (``none`` in plain text); stored as its index, int8."""

KIND_BOS: Final = KINDS.index("bos")

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MOST: Final = 1 << 63
_SEEDS: Final = 1 << 32
_BYTES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
_VISIBLE: Final = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    **dict.fromkeys(range(0x7F, 0xA0), "\ufffd"),
    ord("\n"): "↵",
    ord("\t"): "⇥",
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True)
class SiteLayer:
    """One place in a model: a site of one decoder layer (counted from 0)."""

    site: Site
    layer: int

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise InvalidArgumentError(
                f"site {self.site!r} is unknown; sites are {', '.join(SITES)}; choose one of them"
            )
        if self.layer < 0:
            raise InvalidArgumentError(
                f"layer {self.layer} was asked for; layers count from 0; give 0 or more"
            )

    @classmethod
    def parse(cls, text: str) -> SiteLayer:
        """Return the place that ``<site>/<layer>`` names.

        Raises:
            InvalidArgumentError: it is spelt otherwise.
        """
        name, _, layer = text.partition("/")
        for site in SITES:
            if name == site and layer.isdecimal():
                return cls(site, int(layer))
        raise InvalidArgumentError(
            f"dense site {text!r} was asked for; a site is <name>/<layer> with {', '.join(SITES)}; "
            "give for example resid_post/3"
        )

    def __str__(self) -> str:
        return f"{self.site}/{self.layer}"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Return the first of `names`, and how many more there are."""
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed}, ... {len(names) - most:,} more"


def counted(n: int, noun: str) -> str:
    """Return a number of things in words: 1 file, 2 files."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def slug(name: str) -> str:
    """Return `name` as one path segment: ``/`` becomes ``~``."""
    return name.replace("/", "~")


def visible(token: str) -> str:
    """Return `token` with signs for control characters: text could command a terminal."""
    return token.translate(_VISIBLE)


def is_text(value: str) -> bool:
    """Whether `value` has no half of a surrogate pair, which no file or table can hold."""
    return _SURROGATE.search(value) is None


_F = TypeVar("_F")


def check_function(what: str, value: _F | None) -> _F | None:
    """Return `value` if it can be called or is None, else refuse it."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(
            f"{what} {value!r} was asked for; it is of type {type(value).__name__}; give a "
            "function, which is called as the work goes on, or None"
        )
    return value


def check_text(what: str, value: object) -> str:
    """Return `value` if it is text, else refuse it."""
    if not isinstance(value, str):
        raise InvalidArgumentError(
            f"{what} {value!r} was asked for; it is of type {type(value).__name__}; give text"
        )
    if not is_text(value):
        raise InvalidArgumentError(
            f"{what} {value!r} was asked for; it has half of a surrogate pair, which is no text; "
            "mend it"
        )
    return value


def check_filled(what: str, value: object) -> str:
    """Return `value` if it is text that names something, else refuse it.

    An empty text would be the current folder as a path, and the ending of every name.
    """
    text = check_text(what, value)
    if not text.strip():
        raise InvalidArgumentError(
            f"{what} {text!r} was asked for; it is empty; give the name of one"
        )
    return text


def check_whole(what: str, value: object) -> int:
    """Return a whole number, also one of numpy's, as Python's own, else refuse it."""
    if not isinstance(value, bool):
        try:
            found = index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            if -_MOST <= found < _MOST:
                return found
            raise InvalidArgumentError(
                f"{what} {found} was asked for; it is out of range; give one below 2^63"
            )
    raise InvalidArgumentError(
        f"{what} {value!r} was asked for; it is of type {type(value).__name__}; give a whole number"
    )


def parse_bytes(what: str, value: object) -> int:
    """Return a number of bytes, 1 or more, of one or of text such as ``8GB`` or ``500 MiB``.

    Raises:
        InvalidArgumentError: it is neither.
    """
    found = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    n_bytes: float = 0
    if found:
        n_bytes = float(found[1]) * _UNITS[(found[2] or "").upper()]
    elif isinstance(value, int) and not isinstance(value, bool):
        n_bytes = value
    if not 1 <= n_bytes < _MOST:
        raise InvalidArgumentError(
            f"{what}={value!r} was asked for; it is no size; give one such as 8GB or 500MiB"
        )
    return int(n_bytes)


def check_seed(value: object) -> int:
    """Return a seed that every generator takes, else refuse it."""
    seed = check_whole("seed", value)
    if not 0 <= seed < _SEEDS:
        raise InvalidArgumentError(
            f"seed={seed} was asked for; it is out of range; give one of 0 to {_SEEDS - 1}"
        )
    return seed


def check_name(what: str, name: str) -> str:
    """Return `name` if it is usable as a folder name and a SQL literal, else refuse it."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidArgumentError(
            f"{what} name {name!r} is not usable; names are letters, digits, '.', '_' and '-', "
            "starting with a letter or digit; choose such a name"
        )
    return name
