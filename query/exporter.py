"""What writes a format of other tools: one protocol, one file for each format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from scopelake.errors import InvalidArgumentError
from scopelake.query.export_source import ExportSource

Progress = Callable[[str, int, int], None]
"""Called with what is written, how many of it are, and of how many."""

All = Literal["all"]

_LEAST: Final = {"k": 1, "window": 0, "n_splits": 1}


@dataclass(frozen=True)
class ExportOptions:
    """How much is written; None: what the format usually has."""

    k: int | All | None = None
    """Contexts of a feature."""
    window: int | All | None = None
    """Tokens on either side of a peak."""
    n_splits: int | None = None
    """Files that the features are cut into."""

    def check(self, exporter: Exporter) -> None:
        """Refuse what the format has no use for, and what is out of range.

        Raises:
            InvalidArgumentError: the message says what there is.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if name not in exporter.takes:
                takes = ", ".join(sorted(exporter.takes)) or "none"
                raise InvalidArgumentError(
                    f"{name}={value} was asked for of an export as {exporter.name}; its options "
                    f"are {takes}; leave it out"
                )
            if isinstance(value, int) and value < least:
                raise InvalidArgumentError(
                    f"{name}={value} was asked for; it is out of range; give {least} or more"
                )


@dataclass(frozen=True)
class Written:
    """What an exporter wrote."""

    left_out: tuple[str, ...]
    """Sentences: what the format cannot hold, or was not asked for."""
    usage: str
    """Python that loads it."""
    n_firings: int | None = None
    """That are in it; None: all."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More for the manifest."""
    front_matter: str = ""
    """What the README begins with."""


class Exporter(Protocol):
    """Writes one format."""

    name: str
    """As it is asked for."""
    about: str
    """What it is, in words."""
    takes: frozenset[str]
    """Options of `ExportOptions` that it has."""

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder.

        Raises:
            InvalidArgumentError: the format cannot hold what is asked for.
        """
        ...
