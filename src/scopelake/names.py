"""Names of sites, kinds, roles and files: pure strings, no IO.

A *site* is where in a decoder layer a tensor is read. A *coder* (users say SAE) is
named ``<repo>/<family>/<folder>``. Nothing here opens a file or imports a package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from scopelake.errors import InvalidArgumentError

Site = Literal["resid_post", "attn_out", "mlp_out", "mlp_in"]
"""Where in a layer: residual after it; input of ``o_proj``; after the post-feedforward
norm; after the pre-feedforward norm."""

SITES: Final[tuple[Site, ...]] = get_args(Site)

KINDS: Final = ("content", "template", "bos", "generated")
"""What a token is; stored as its index, int8."""

ROLES: Final = ("none", "user", "model", "system", "tool")
"""Who speaks a token (``none`` in plain text); stored as its index, int8."""

KIND_BOS: Final = KINDS.index("bos")

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

    def __str__(self) -> str:
        return f"{self.site}/{self.layer}"


def slug(name: str) -> str:
    """Return `name` as one path segment: ``/`` becomes ``~``."""
    return name.replace("/", "~")


def check_name(what: str, name: str) -> str:
    """Return `name` if it is usable as a folder name and a SQL literal, else refuse it."""
    if not _NAME.match(name):
        raise InvalidArgumentError(
            f"{what} name {name!r} is not usable; names are letters, digits, '.', '_' and '-', "
            "starting with a letter or digit; choose such a name"
        )
    return name
