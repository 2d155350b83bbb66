"""Features that fire on the same tokens: how often, and how much more than by chance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.query.coactive_sql import coactive_sql
from scopelake.query.connect import Connection
from scopelake.query.literals import literal
from scopelake.query.resolve import SaeInfo
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE

if TYPE_CHECKING:
    import pandas as pd

_TYPES: Final = {
    "other_feature": pa.int32(),
    "n_both": pa.int64(),
    "n_feature": pa.int64(),
    "n_other": pa.int64(),
    "n_tokens": pa.int64(),
    "lift": pa.float64(),
    "pmi": pa.float64(),
}


@dataclass(frozen=True)
class Coactive:
    """Features that fire on the same tokens as one feature, those that say most of it first."""

    sae: str
    feature: int
    other_sae: str
    """Whose features they are; may be the same SAE, without the feature itself."""
    corpora: tuple[str, ...]
    """On which tokens were counted."""
    table: pa.Table
    """other_feature, n_both (tokens on which both fire), n_feature and n_other (on which each
    does), n_tokens (all), lift (n_both * n_tokens / (n_feature * n_other)), pmi (log2 of it, bits);
    by n_both * pmi, what both have to do with each other in bits, the highest first."""
    note: str = ""
    """What the counts are short of: corpora of which not all firings are known."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return a line for each feature."""
        bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
        lines = [f"fire with feature {self.feature} of {self.sae}: features of {self.other_sae}"]
        lines += [
            f"{bold}{r['other_feature']:9d}{plain}  on {r['n_both']:,} of its {r['n_other']:,} "
            f"tokens, lift {r['lift']:.3g}, PMI {r['pmi']:.2f} bit"
            for r in self.table.to_pylist()
        ]
        lines += [] if self.table.num_rows else ["    none does"]
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        names = ("other_feature", "n_both", "n_other", "lift", "pmi")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{r[name]:.6g}</td>' for name in names)}</tr>"
            for r in self.table.to_pylist()
        )
        return (
            f"<b>fire with feature {self.feature}</b> of {escape(self.sae)}: features of "
            f"{escape(self.other_sae)}<table><tr>{head}</tr>{body}</table>{escape(self.note)}"
        )


def coactive(
    connection: Connection,
    sae: SaeInfo,
    feature: int,
    other: SaeInfo | None = None,
    *,
    corpus: str | None = None,
    k: int = 20,
) -> Coactive:
    """Return the features that fire on the same tokens, BOS left out.

    Counts are exact, over the corpora of which all firings of both SAEs are in the lake.

    Args:
        connection: from `connect`.
        sae: from `resolve_sae`.
        feature: index in it.
        other: whose features are counted, of any layer or model; `sae` itself by default.
        corpus: only on this corpus.
        k: at most so many.

    Raises:
        InvalidArgumentError: `k` is below 1.
        CorpusNotFoundError, NotIngestedError: there is no such corpus, or an SAE was not run on it.
        QueryError: on no corpus that was asked for all firings of both are known.
    """
    if k < 1:
        raise InvalidArgumentError(
            f"k={k} was asked for; k is a number of features; give 1 or more"
        )
    other = other or sae
    corpora, note = counted_on(connection, [sae, other], corpus)
    of_other = [("sae", "=", other.name), ("corpus", "in", corpora)]
    firings = [("sae", "=", sae.name), ("feature", "=", feature), ("corpus", "in", corpora)]
    rows = run(
        connection, explain_coactive(sae, feature, other, corpora=corpora, k=k), None,
        {"postings": firings, "codes": of_other, "features": of_other},
    )  # fmt: skip
    table = pa.table({name: rows[name].cast(type_) for name, type_ in _TYPES.items()})
    return Coactive(sae.name, feature, other.name, tuple(corpora), table, note)


def explain_coactive(
    sae: SaeInfo,
    feature: int,
    other: SaeInfo | None = None,
    *,
    corpora: Collection[str],
    k: int = 20,
) -> str:
    """Return the SQL that `coactive` runs, given the corpora on which it counts."""
    other = other or sae
    listed = ", ".join(literal(name) for name in corpora)
    return coactive_sql(
        literal(sae.name), str(int(feature)), literal(other.name),
        lambda corpus: f"{corpus} IN ({listed})", str(int(k)),
    )  # fmt: skip


def counted_on(
    connection: Connection, saes: Collection[SaeInfo], corpus: str | None
) -> tuple[list[str], str]:
    """Return the corpora of which all firings of all `saes` are known, and what is left out.

    Raises:
        CorpusNotFoundError, NotIngestedError: there is no such corpus, or an SAE was not run on it.
        QueryError: there is none.
    """
    for sae in saes:
        connection.coverage.check_known(sae, corpus)
    states = {
        sae.name: states_of(connection, sae, corpus, _described(connection, sae)) for sae in saes
    }
    left_out: dict[str, str] = {}
    everywhere = {name for found in states.values() for name in found}
    for sae_name, found in states.items():
        left_out |= {
            name: f"{sae_name} {f'is {found[name]}' if name in found else 'was not run there'}"
            for name in everywhere
            if found.get(name, "not run")
        }
    whole = everywhere - set(left_out)
    said = "; ".join(f"corpus {name} is left out: {how}" for name, how in sorted(left_out.items()))
    if not whole:
        names = " and ".join(dict.fromkeys(sae.name for sae in saes))
        raise QueryError(
            f"counts of what fires together were asked for; all firings of {names} are known on no "
            f"corpus that was asked for ({said or 'they share none'}); ingest one with all firings"
        )
    return sorted(whole), said


def states_of(
    connection: Connection, sae: SaeInfo, corpus: str | None, described: Collection[str]
) -> dict[str, str]:
    """Return, by corpus that an SAE was run on, what its firings there are short of, or nothing.

    Args:
        connection: from `connect`.
        sae: the SAE.
        corpus: only this corpus.
        described: corpora on which it has statistics.
    """
    coverage = connection.coverage
    names = sorted({*coverage.corpora(sae.name), *sae.partial})
    states = {}
    for name in (n for n in names if corpus in (None, n)):
        known = sae.partial.get(name)
        is_published = known is not None and known.keep is None
        state = "" if is_published else coverage.state(sae.name, name)
        if name not in described:
            state = state or "incomplete, its statistics are not written"
        states[name] = "; ".join(part for part in (known.what if known else "", state) if part)
    return states


def _described(connection: Connection, sae: SaeInfo) -> set[str]:
    """Return the corpora on which an SAE has statistics."""
    query = f"SELECT corpus FROM {PRIVATE}.features WHERE sae = ? AND feature = 0"
    reads = {"features": [("sae", "=", sae.name)]}
    return set(run(connection, query, [sae.name], reads)["corpus"].to_pylist())
