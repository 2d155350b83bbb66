"""Which coders a comparison is of, which feature is compared with which, and on which corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scopelake.errors import NotIngestedError, QueryError, SaeNotFoundError
from scopelake.names import Site, shortened
from scopelake.query.connect import Connection
from scopelake.query.resolve import SaeInfo, resolve_sae
from scopelake.query.sql import run
from scopelake.query.token_sets import Side, TokenSet
from scopelake.query.views import PRIVATE
from scopelake.store.keeping import KEEP_ALL, Keep

Ints = npt.NDArray[np.int64]

_FACTS: Final = ("type", "model", "family", "folder", "d_in")


@dataclass(frozen=True)
class CoderPair:
    """The coder of each set; mostly the same one."""

    a: SaeInfo
    b: SaeInfo

    @property
    def is_one(self) -> bool:
        """Whether it is one coder."""
        return self.a.name == self.b.name


@dataclass(frozen=True)
class Matched:
    """Features that are compared with each other, by the first, [n]."""

    feature_a: Ints
    feature_b: Ints
    cosine: npt.NDArray[np.float64]
    """Of their decoder directions; 1 of a feature with itself."""


@dataclass(frozen=True)
class Choice:
    """Coders that fit what is asked for."""

    sae: Sequence[str] = ()
    """Names, or endings of names; empty: all."""
    layer: Sequence[int] = ()
    site: Site | None = None

    def coders(self, there: Sequence[SaeInfo]) -> list[SaeInfo]:
        """Return all that fit.

        Raises:
            SaeNotFoundError, LayerNotFoundError: none fits one of the names or layers.
        """
        pool: dict[str, SaeInfo] = {}
        found: dict[str, SaeInfo] = {}
        for name in self.sae or (None,):
            exact = [s for s in there if s.name == name]
            named = exact or [s for s in there if name is None or (name and s.name.endswith(name))]
            fitting = [s for s in named if self._fits(s)]
            if not fitting:
                # Says what there is.
                resolve_sae(there, name, self.layer[0] if self.layer else None, self.site)
            pool |= {s.name: s for s in named}
            found |= {s.name: s for s in fitting}
        for layer in self.layer:
            if not any(layer in s.layers for s in found.values()):
                resolve_sae(list(pool.values()), None, layer, self.site)
        return [s for s in there if s.name in found]

    def _fits(self, sae: SaeInfo) -> bool:
        of_layer = not self.layer or not set(self.layer).isdisjoint(sae.layers)
        return of_layer and self.site in (None, sae.site)


def choose_pairs(
    connection: Connection, there: Sequence[SaeInfo], choice: Choice, a: TokenSet, b: TokenSet
) -> list[CoderPair]:
    """Return the coders that are compared.

    A set that names neither model nor SAE takes those of the other one.

    Raises:
        SaeNotFoundError, AmbiguousSaeError, LayerNotFoundError: none fits, or several where one
            has to.
        QueryError: coders of a and b cannot be compared.
    """
    coders = choice.coders(there)
    facts = _facts(connection)
    asked = [(s.model, s.sae) for s in (a, b)]
    asked = [one if any(one) else other for one, other in zip(asked, asked[::-1], strict=True)]
    if asked[0] == asked[1]:
        return [CoderPair(s, s) for s in _of_set(coders, facts, *asked[0])]
    of_a, of_b = (_of_set(coders, facts, *one) for one in asked)
    if len(of_a) == len(of_b) == 1:
        _check_alike(of_a[0], of_b[0], facts)
        return [CoderPair(of_a[0], of_b[0])]
    return [CoderPair(one, _counterpart(one, of_b, facts)) for one in of_a]


def _of_set(
    coders: Sequence[SaeInfo], facts: dict[str, dict[str, Any]], model: str | None, sae: str | None
) -> list[SaeInfo]:
    found = list(coders)
    if model is not None:
        models = sorted({str(facts[s.name]["model"]) for s in found})
        exact = [name for name in models if name == model]
        fitting = exact or [name for name in models if model and name.endswith(model)]
        if not fitting:
            raise SaeNotFoundError(
                f"SAEs of model {model!r} were asked for; those that fit are of "
                f"{shortened(models)}; choose one of them"
            )
        found = [s for s in found if facts[s.name]["model"] in fitting]
    return found if sae is None else [resolve_sae(found, sae=sae)]


def _likeness(coder: SaeInfo, facts: dict[str, dict[str, Any]]) -> tuple[Any, ...]:
    """Return what coders have in common whose features can be matched."""
    return facts[coder.name]["type"], coder.site, coder.width, facts[coder.name]["d_in"]


def _check_alike(a: SaeInfo, b: SaeInfo, facts: dict[str, dict[str, Any]]) -> None:
    if _likeness(a, facts) != _likeness(b, facts):
        said = " and ".join(
            f"{s.name} is of type {facts[s.name]['type']} at {s.site}, {s.width:,} features, reads "
            f"{facts[s.name]['d_in']} values"
            for s in (a, b)
        )
        raise QueryError(
            f"firings of two SAEs were to be compared; {said}; give SAEs that are alike in these"
        )


def _counterpart(
    one: SaeInfo, others: Sequence[SaeInfo], facts: dict[str, dict[str, Any]]
) -> SaeInfo:
    """Return the coder of another model that is alike, at the same layers."""
    alike = [
        s for s in others
        if s.layers == one.layers and _likeness(s, facts) == _likeness(one, facts)
    ]  # fmt: skip
    named = [
        s for s in alike
        if all(facts[s.name][k] == facts[one.name][k] for k in ("family", "folder"))
    ]  # fmt: skip
    fitting = named or alike
    if len(fitting) != 1:
        raise QueryError(
            f"an SAE like {one.name} was asked for; of its type, site, layer and width there are "
            f"{shortened([s.name for s in fitting]) or 'none'} on the other side; name one SAE for "
            "each of the sets"
        )
    return fitting[0]


def _facts(connection: Connection) -> dict[str, dict[str, Any]]:
    query = f"SELECT sae, {', '.join(_FACTS)} FROM {PRIVATE}.saes"
    return {row["sae"]: row for row in run(connection, query, None, {"saes": ()}).to_pylist()}


def matched_features(connection: Connection, pair: CoderPair) -> Matched:
    """Return which feature is compared with which: of two coders those that are mutually nearest.

    Raises:
        NotIngestedError: the decoders of two coders were not compared.
    """
    if pair.is_one:
        every = np.arange(pair.a.width)
        return Matched(every, every, np.ones(pair.a.width))
    nearest, cosine = _nearest(connection, pair.a, pair.b)
    back, _ = _nearest(connection, pair.b, pair.a)
    at = np.flatnonzero(nearest >= 0)
    at = at[back[nearest[at]] == at]
    return Matched(at, nearest[at], cosine[at])


def _nearest(
    connection: Connection, one: SaeInfo, other: SaeInfo
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return of each feature the nearest one of the other coder (-1: none), and the cosine."""
    filters = [("sae", "=", one.name), ("other_sae", "=", other.name), ("rank", "<", 1)]
    rows = connection.rows("neighbors", ("feature", "other_feature", "cosine"), filters)
    if not rows.num_rows:
        raise NotIngestedError(
            f"features of {one.name} and {other.name} were to be compared; their decoders were "
            "not; run add_neighbors with both of them first"
        )
    found = np.full(one.width, -1, np.int64)
    cosine = np.full(one.width, np.nan)
    at = rows["feature"].to_numpy()
    found[at], cosine[at] = rows["other_feature"].to_numpy(), rows["cosine"].to_numpy()
    return found, cosine


@dataclass(frozen=True)
class Ground:
    """What is compared where."""

    pairs: tuple[CoderPair, ...]
    sides: tuple[Side, Side]
    notes: tuple[str, ...]
    """SAEs and corpora that are left out, and why."""


def find_ground(
    connection: Connection, pairs: Sequence[CoderPair], a: TokenSet, b: TokenSet
) -> Ground:
    """Return the coders of which all firings are known on the corpora of both sets.

    Where a set names no corpus it is on those of which all firings of all of these are known.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError, QueryError: of no coder all firings are known there.
    """
    for corpus in (s.corpus for s in (a, b) if s.corpus is not None):
        connection.coverage.check_corpus(corpus)
    known, lost = {}, {}
    for coder in {s.name: s for pair in pairs for s in (pair.a, pair.b)}.values():
        known[coder.name], lost[coder.name] = _known(connection, coder)
    refused = [_refused(pair, a, b, known, lost) for pair in pairs]
    kept = [pair for pair, why in zip(pairs, refused, strict=True) if not why]
    if not kept:
        raise NotIngestedError(
            f"a comparison was asked for; {refused[0]}; name another corpus, or ingest with all "
            "firings into another one first"
        )
    notes = []
    if len(kept) < len(pairs):
        names = [pair.a.name for pair, why in zip(pairs, refused, strict=True) if why]
        notes.append(f"without {shortened(names)}: {next(filter(None, refused))}")
    sides = (
        _side(a, [pair.a for pair in kept], known, lost, notes),
        _side(b, [pair.b for pair in kept], known, lost, notes),
    )
    return Ground(tuple(kept), sides, tuple(dict.fromkeys(notes)))


def _known(connection: Connection, coder: SaeInfo) -> tuple[dict[str, Keep], dict[str, str]]:
    """Return by corpus what is kept of a coder's firings; and of others why they do not serve."""
    coverage = connection.coverage
    known: dict[str, Keep] = {}
    lost: dict[str, str] = {}
    for name in sorted({*coverage.corpora(coder.name), *coder.partial}):
        partial = coder.partial.get(name)
        keep = KEEP_ALL if partial is None else partial.keep
        if partial is not None and (keep is None or not keep.share):
            lost[name] = partial.what
        elif state := coverage.state(coder.name, name):
            lost[name] = state
        elif keep is not None:
            known[name] = keep
    return known, lost


def _refused(
    pair: CoderPair, a: TokenSet, b: TokenSet, known: dict[str, dict[str, Keep]],
    lost: dict[str, dict[str, str]],
) -> str:  # fmt: skip
    """Return why a pair cannot be compared on the corpora of the sets, or nothing."""
    asked = ((a, pair.a), (b, pair.b))
    return next(filter(None, (_why_not(s.corpus, c, known, lost) for s, c in asked)), "")


def _why_not(
    corpus: str | None, coder: SaeInfo, known: dict[str, dict[str, Keep]],
    lost: dict[str, dict[str, str]],
) -> str:  # fmt: skip
    """Return why a coder cannot be asked on a corpus, or nothing."""
    if corpus is not None:
        if corpus in known[coder.name]:
            return ""
        how = lost[coder.name].get(corpus)
        if how is not None:
            return f"not all firings of {coder.name} on corpus {corpus!r} are known ({how})"
        there = ", ".join(known[coder.name]) or "none"
        return f"{coder.name} was not run on corpus {corpus!r}, but on {there}"
    if known[coder.name]:
        return ""
    said = "; ".join(f"corpus {name}: {how}" for name, how in lost[coder.name].items())
    return f"all firings of {coder.name} are known on no corpus ({said or 'it was not run'})"


def _side(
    asked: TokenSet, coders: Sequence[SaeInfo], known: dict[str, dict[str, Keep]],
    lost: dict[str, dict[str, str]], notes: list[str],
) -> Side:  # fmt: skip
    names = {asked.corpus} if asked.corpus is not None else set(known[coders[0].name])
    for coder in coders:
        names &= set(known[coder.name])
        if asked.corpus is None:
            notes += [f"corpus {name} is left out: {coder.name} is {how}"
                      for name, how in lost[coder.name].items()]  # fmt: skip
    if not names:
        raise QueryError(
            f"a comparison of {shortened([s.name for s in coders])} was asked for; there is no "
            "corpus on which all firings of all of them are known; name one SAE, or a corpus"
        )
    if asked.corpus is None:
        partly = sorted({n for s in coders for n in known[s.name]} - names)
        notes += [f"corpus {name} is left out: not all of the SAEs were run there"
                  for name in partly]  # fmt: skip
    return Side(asked, {name: min((known[s.name][name] for s in coders), key=lambda k: k.share)
                        for name in sorted(names)})  # fmt: skip
