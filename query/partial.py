"""SAEs of which not all firings on a corpus are known: what can be answered, and what is said."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from scopelake.errors import PartialWarning, QueryError
from scopelake.query.resolve import Partial, SaeInfo

if TYPE_CHECKING:
    from scopelake.query.coverage import Coverage


_FIRINGS: Final = re.compile(r"\b(codes|postings|features_at|top_contexts(_of)?)\b", re.IGNORECASE)
"""Views and macros of firings, in a statement."""


def partial_on(sae: SaeInfo, corpus: str | None) -> Mapping[str, Partial]:
    """Return what is known by corpus, of those that `corpus` (None: any) includes."""
    return {c: known for c, known in sae.partial.items() if corpus in (None, c)}


def check_answerable(sae: SaeInfo, corpus: str | None, asked: str | None, *, k: int = 1) -> None:
    """Refuse what only all firings could answer.

    Args:
        sae: whose firings.
        corpus: on which corpus; any if None.
        asked: what needs all firings, in words; None: nothing but perhaps `k`.
        k: number of contexts.

    Raises:
        QueryError: not all are known, or fewer contexts than `k`.
    """
    for name, known in partial_on(sae, corpus).items():
        needs = f"k={k}" if asked is None and k > known.depth else asked
        if needs is not None:
            raise QueryError(
                f"contexts with {needs} were asked for; on corpus {name!r} not all firings of "
                f"{sae.name} are known ({known.what}, BOS left out); name another corpus, query "
                "peaks in SQL, or ingest it with all firings into another corpus"
            )


def note(coverage: Coverage, sae: SaeInfo, corpus: str | None) -> str:
    """Return what a reader of an answer must know, or nothing."""
    parts = [f"corpus {name}: {known.what}" for name, known in partial_on(sae, corpus).items()]
    parts += [
        f"corpus {name}: {state}"
        for name in coverage.corpora(sae.name)
        if corpus in (None, name) and (state := coverage.state(sae.name, name))
    ]
    return "; ".join(parts)


def warn_of_partial(query: object, saes: Sequence[SaeInfo]) -> None:
    """Warn where a statement reads firings and an ingest did not keep all of some SAE.

    Warns:
        PartialWarning: then.
    """
    if not isinstance(query, str) or not _FIRINGS.search(query):
        return
    kept = {
        corpus: known.what
        for sae in saes
        for corpus, known in sae.partial.items()
        if known.keep is not None
    }
    if kept:
        said = "; ".join(f"corpus {corpus}: {what}" for corpus, what in sorted(kept.items()))
        warnings.warn(
            f"codes and postings do not have all firings of some SAEs ({said}); runs.config says "
            "of which; features has statistics of all",
            PartialWarning,
            stacklevel=3,
        )
