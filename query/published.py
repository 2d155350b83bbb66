"""SAEs of which a corpus has only published examples: what can be answered, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scopelake.errors import QueryError
from scopelake.query.resolve import SaeInfo

if TYPE_CHECKING:
    from scopelake.query.coverage import Coverage


def published(sae: SaeInfo, corpus: str | None) -> Mapping[str, int]:
    """Return the depth of the examples by corpus, of those that `corpus` (None: any) includes."""
    return {c: depth for c, depth in sae.examples.items() if corpus in (None, c)}


def check_answerable(
    sae: SaeInfo, corpus: str | None, *, k: int, where: str | None, bos: bool
) -> None:
    """Refuse what only all firings could answer.

    Raises:
        QueryError: a filter, BOS or more contexts than there are examples.
    """
    for name, depth in published(sae, corpus).items():
        asked = (
            f"where {where!r}" if where is not None
            else "bos" if bos
            else f"k={k}" if k > depth
            else None
        )  # fmt: skip
        if asked is not None:
            raise QueryError(
                f"top contexts with {asked} were asked for; on corpus {name!r} only the published "
                f"examples of {sae.name} are known, at most {depth:,} firings a feature, BOS left "
                "out; name another corpus, query peaks in SQL, or ingest"
            )


def note(coverage: Coverage, sae: SaeInfo, corpus: str | None) -> str:
    """Return what a reader of an answer must know, or nothing."""
    parts = [
        f"corpus {name}: published examples only, at most {depth:,} firings a feature"
        for name, depth in published(sae, corpus).items()
    ]
    parts += [
        f"corpus {name}: {state}"
        for name in coverage.corpora(sae.name)
        if corpus in (None, name) and (state := coverage.state(sae.name, name))
    ]
    return "; ".join(parts)
