"""What the macros know of a snapshot's SAEs: constants, so that a name prunes files.

A name that came out of a subquery would be compared with rows after they were read. These facts
are folded while a query is planned, and the scan sees ``sae = '...'``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scopelake.query.literals import listed, literal
from scopelake.query.resolve import SaeInfo, list_saes
from scopelake.query.views import PRIVATE
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

if TYPE_CHECKING:
    from scopelake.query.coverage import Coverage

_TYPE: Final = (
    "STRUCT(sae VARCHAR, site VARCHAR, layers INTEGER[], width INTEGER, corpora VARCHAR[], "
    "partial STRUCT(corpus VARCHAR, depth INTEGER)[], incomplete VARCHAR[])[]"
)


@dataclass(frozen=True)
class Facts:
    """The SAEs and corpora of a snapshot."""

    saes: Sequence[SaeInfo]
    corpora: Sequence[str]
    tokenizers: Sequence[str]
    """Names of those of the corpora, each once."""
    run: dict[str, list[str]]
    """By SAE the corpora of which it has firings, of at least one shard."""
    incomplete: dict[str, list[str]]
    """By SAE the corpora of which shards are missing."""


def gather(store: LakeStore, snapshot: Snapshot, coverage: Coverage) -> Facts:
    """Return the facts of a snapshot."""
    rows = store.read("corpora", snapshot, ["corpus", "tokenizer"]).to_pylist()
    saes = list_saes(store, snapshot)
    run = {s.name: coverage.corpora(s.name) for s in saes}
    return Facts(
        saes,
        sorted(row["corpus"] for row in rows),
        sorted({row["tokenizer"] for row in rows}),
        run,
        {name: [c for c in corpora if coverage.state(name, c)] for name, corpora in run.items()},
    )


def fact_statements(facts: Facts) -> list[str]:
    """Return SQL of the private macros that choose an SAE, or say why none can be chosen."""
    # One string for a thousand SAEs: as SQL lists and structs they take 50 times as long to plan.
    values = json.dumps([_row(facts, sae) for sae in facts.saes], ensure_ascii=False)
    texts = {
        "facts()": f"CAST(CAST({literal(values)} AS JSON) AS {_TYPE})",
        "corpora()": listed(facts.corpora),
        "tokenizers()": listed(facts.tokenizers),
        **_CHOICE,
        **_REFUSALS,
    }
    return [f"CREATE OR REPLACE MACRO {PRIVATE}.{name} AS {sql}" for name, sql in texts.items()]


def _row(facts: Facts, sae: SaeInfo) -> dict[str, object]:
    partial = [{"corpus": c, "depth": known.depth} for c, known in sorted(sae.partial.items())]
    return {
        "sae": sae.name,
        "site": sae.site,
        "layers": sae.layers,
        "width": sae.width,
        "corpora": sorted({*facts.run[sae.name], *sae.partial}),
        "partial": partial,
        "incomplete": facts.incomplete[sae.name],
    }


def let(name: str, value: str, then: str) -> str:
    """Return SQL of `then`, in which `name` stands for `value`.

    What macros are given is copied to every place where it is used; this keeps it one copy.
    """
    return f"list_transform([{value}], lambda {name}: {then})[1]"


# Arguments of private macros end in _, so that no column is taken for one of them.
_CHOICE: Final = {
    # The name of one SAE means that one alone, also where other names end in it.
    "chosen(layer_, site_, sae_, corpus_)": let(
        "fits_",
        let(
            "every_",
            f"{PRIVATE}.facts()",
            "list_filter(every_, lambda one_: CASE WHEN sae_ IS NULL "
            "THEN site_ IS NULL OR one_.site = site_ "
            "WHEN len(list_filter(every_, lambda same_: same_.sae = sae_)) > 0 "
            "THEN one_.sae = sae_ ELSE ends_with(one_.sae, sae_) END "
            "AND (layer_ IS NULL OR list_contains(one_.layers, layer_)))",
        ),
        "CASE WHEN corpus_ IS NOT NULL AND len(fits_) > 1 "
        "AND len(list_filter(fits_, lambda one_: list_contains(one_.corpora, corpus_))) > 0 "
        "THEN list_filter(fits_, lambda one_: list_contains(one_.corpora, corpus_)) ELSE fits_ END",
    ),
    "sae_of(layer_, site_, sae_, corpus_)": let(
        "fits_",
        f"{PRIVATE}.chosen(layer_, site_, sae_, corpus_)",
        "CASE WHEN len(fits_) = 1 THEN fits_[1].sae END",
    ),
    "partial_on(layer_, site_, sae_, corpus_)": let(
        "fits_",
        f"{PRIVATE}.chosen(layer_, site_, sae_, corpus_)",
        "CASE WHEN len(fits_) = 1 THEN list_transform(fits_[1].partial, lambda one_: one_.corpus) "
        "ELSE CAST([] AS VARCHAR[]) END",
    ),
    "corpora_of(layer_, site_, sae_, corpus_)": let(
        "fits_",
        f"{PRIVATE}.chosen(layer_, site_, sae_, corpus_)",
        "CASE WHEN len(fits_) = 1 THEN list_filter(fits_[1].corpora, "
        "lambda name_: corpus_ IS NULL OR name_ = corpus_) ELSE CAST([] AS VARCHAR[]) END",
    ),
    "partly_kept(corpus_)": f"""list_transform(list_filter({PRIVATE}.facts(),
  lambda one_: len(list_filter(one_.partial, lambda part_: part_.corpus = corpus_)) > 0),
  lambda one_: one_.sae)""",
    "one_corpus(corpus_)": f"""CASE WHEN corpus_ IS NULL AND len({PRIVATE}.corpora()) = 1
  THEN {PRIVATE}.corpora()[1] ELSE corpus_ END""",
}

_NAMES: Final = (
    "array_to_string(list_transform({0}[:5], lambda one_: one_.sae), ', ') "
    "|| CASE WHEN len({0}) > 5 THEN ', ... ' || (len({0}) - 5) || ' more' ELSE '' END"
)
_ASKED: Final = """'an SAE' || CASE WHEN sae_ IS NULL THEN coalesce(' of site ' || site_, '')
  ELSE ' named ''' || sae_ || '''' END || coalesce(' of layer ' || layer_, '')
  || ' was asked for; '"""
_NO_SAE: Final = f"""CASE WHEN len(fits_) = 0 THEN {_ASKED} || 'the lake has '
  || {
    let(
        "every_",
        f"{PRIVATE}.facts()",
        "CASE WHEN len(every_) = 0 "
        f"THEN 'none (ingest a corpus first)' ELSE {_NAMES.format('every_')} END",
    )
}
  || '; choose one of them'
  WHEN len(fits_) > 1 THEN {_ASKED} || len(fits_) || ' SAEs fit: ' || {_NAMES.format("fits_")}
  || '; name one with sae := ...' END"""
_NO_FEATURE: Final = """CASE
  WHEN feature_ IS NULL OR feature_ < 0 OR feature_ >= fits_[1].width
  THEN 'feature ' || coalesce(CAST(feature_ AS VARCHAR), 'NULL') || ' of ' || fits_[1].sae
  || ' was asked for; it has features 0 to ' || (fits_[1].width - 1)
  || '; choose one of them' END"""
_NOT_RUN: Final = """CASE
  WHEN len(fits_[1].corpora) = 0
  THEN fits_[1].sae || ' was asked for; it was run on no corpus yet; ingest it first'
  WHEN corpus_ IS NOT NULL AND NOT list_contains(fits_[1].corpora, corpus_)
  THEN fits_[1].sae || ' was asked for on corpus ''' || corpus_
  || '''; it was not run there, but on ' || array_to_string(fits_[1].corpora, ', ')
  || '; ingest it there first' END"""


def _chosen(then: str) -> str:
    return let("fits_", f"{PRIVATE}.chosen(layer_, site_, sae_, corpus_)", then)


_REFUSALS: Final = {
    # Each is null where there is nothing to refuse.
    "no_corpus(corpus_)": f"""CASE
  WHEN corpus_ IS NOT NULL AND NOT list_contains({PRIVATE}.corpora(), corpus_)
  THEN 'corpus ''' || corpus_ || ''' was asked for; the lake has '
  || coalesce(nullif(array_to_string({PRIVATE}.corpora(), ', '), ''), 'none')
  || '; choose one of them' END""",
    "no_sae(layer_, site_, sae_, corpus_)": _chosen(f"coalesce({_NO_SAE}, {_NOT_RUN})"),
    "refusal(layer_, site_, sae_, feature_, corpus_)": f"""coalesce(
  {PRIVATE}.no_corpus(corpus_), {_chosen(f"coalesce({_NO_SAE}, {_NO_FEATURE}, {_NOT_RUN})")})""",
    "too_few(k_, what_)": """CASE WHEN k_ IS NULL OR k_ < 1
  THEN 'k=' || coalesce(CAST(k_ AS VARCHAR), 'NULL') || ' was asked for; k is a number of '
  || what_ || '; give 1 or more' END""",
    "too_deep(layer_, site_, sae_, corpus_, k_)": _chosen(
        let(
            "less_",
            "list_filter(CASE WHEN len(fits_) = 1 THEN fits_[1].partial END, "
            "lambda one_: one_.depth < k_ AND (corpus_ IS NULL OR one_.corpus = corpus_))",
            "CASE WHEN len(less_) > 0 THEN 'top contexts with k=' || k_ || ' were asked for; on "
            "corpus ''' || less_[1].corpus || ''' not all firings of ' || fits_[1].sae || ' are "
            "known, but the strongest ' || less_[1].depth || ' of a feature; ask for fewer, or "
            "name another corpus' END",
        )
    ),
    "not_all(layer_, site_, sae_, corpus_)": _chosen(
        let(
            "part_",
            "CASE WHEN len(fits_) = 1 THEN list_concat("
            "list_transform(fits_[1].partial, lambda one_: one_.corpus), fits_[1].incomplete) END",
            let(
                "here_",
                "list_filter(part_, lambda name_: corpus_ IS NULL OR name_ = corpus_)",
                "CASE WHEN len(here_) > 0 THEN 'all firings of ' || fits_[1].sae || ' were asked "
                "for; on corpus ''' || here_[1] || ''' not all are in the lake; name another "
                "corpus, or ingest all of them there' END",
            ),
        )
    ),
}
