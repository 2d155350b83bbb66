"""What an ingest will do, decided and checked before any work starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from scopelake.errors import CoderMismatchError, CorpusNotFoundError, InvalidArgumentError
from scopelake.ingest.capture import site_width
from scopelake.ingest.coders import CoderFiles, check_fits
from scopelake.ingest.model import ROUNDED, ModelFiles, ModelIdentity
from scopelake.ingest.tokens import Tokenizer
from scopelake.names import SiteLayer, check_whole
from scopelake.store.catalog import (
    IMPORTED,
    committed_dense_shards,
    committed_shards,
    published_examples,
)
from scopelake.store.context_numbers import ContextNumbers
from scopelake.store.keeping import KEEP_ALL, parse_keep, partly_kept, runs_of
from scopelake.store.lake_store import LakeStore
from scopelake.store.precision import relative_error
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class IngestConfig:
    """How to ingest; every field that changes the firings is part of the run's identity."""

    corpus: str
    dense: tuple[SiteLayer, ...] = ()
    """Sites whose dense activations are stored, as bfloat16."""
    activation_bits: int = 10
    """Mantissa bits kept of a firing's activation; 23 is lossless float32."""
    batch_tokens: int = 16384
    """Most tokens, padding included, in one forward pass."""
    evaluate: bool = False
    """Whether the coders' reconstruction is evaluated too, on a sample."""
    keep: str = "all"
    """Which firings are stored, see `store.keeping`."""
    memory: str | int | None = None
    """What a process may take: bytes, ``8GB``, or ``auto`` (None is the same)."""

    def __post_init__(self) -> None:
        relative_error(check_whole("activation_bits", self.activation_bits))
        check_whole("batch_tokens", self.batch_tokens)
        parse_keep(self.keep)
        if self.batch_tokens < 1:
            raise InvalidArgumentError(
                f"batch_tokens={self.batch_tokens} was asked for; give 1 or more"
            )


@dataclass(frozen=True)
class Shard:
    """A range of contexts and what of it is still to be made."""

    index: int
    start: int
    stop: int
    """Contexts [start, stop)."""
    coders: tuple[CoderFiles, ...]
    dense: tuple[SiteLayer, ...]


@dataclass(frozen=True)
class IngestPlan:
    """The work of one ingest."""

    run: str
    """Digest of everything that determines the result: asking again resumes the same run."""
    corpus: dict[str, Any]
    """Its row of the corpora table, with one more than its highest context as ``n_contexts``: the
    size of its dense arrays."""
    coders: tuple[CoderFiles, ...]
    shards: tuple[Shard, ...]
    """Those with work left."""
    n_shards: int
    n_tokens_left: int


def find_corpus(store: LakeStore, snapshot: Snapshot, name: str) -> dict[str, Any]:
    """Return a corpus's row.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
    """
    rows = store.read("corpora", snapshot).to_pylist()
    for row in rows:
        if row["corpus"] == name:
            return dict(row)
    there = ", ".join(sorted(r["corpus"] for r in rows)) or "none"
    raise CorpusNotFoundError(
        f"corpus {name!r} was asked for; the lake has {there}; add it with add_corpus"
    )


def check_tokenizer(corpus: dict[str, Any], model: ModelFiles) -> None:
    """Refuse a model with a tokenizer that is not the corpus's.

    Raises:
        CoderMismatchError: the tokens would not mean the same to the model.
    """
    if not (model.path / "tokenizer.json").is_file():
        return
    digest = Tokenizer.load(model.path, model.name).digest
    if digest != corpus["tokenizer_digest"]:
        raise CoderMismatchError(
            f"corpus {corpus['corpus']!r} was tokenized with {corpus['tokenizer']} "
            f"({corpus['tokenizer_digest']}); {model.name} has another tokenizer ({digest}); add "
            "the corpus again with this model's tokenizer"
        )


def make_plan(
    store: LakeStore,
    snapshot: Snapshot,
    config: IngestConfig,
    model: ModelIdentity,
    coders: list[CoderFiles],
) -> IngestPlan:
    """Check that everything fits together and list the shards with work left.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        CoderMismatchError: a coder or site does not fit the model, or a name in the lake stands
            for other bytes.
    """
    corpus = find_corpus(store, snapshot, config.corpus)
    for coder in coders:
        check_fits(coder, model)
    for site in config.dense:
        site_width(model, site)
    check_catalogue(store, snapshot, config.corpus, model, coders)
    check_precision(store, snapshot, config, model.dtype, [c.name for c in coders])
    numbers = ContextNumbers.of(corpus)
    n_shards = numbers.n_shards
    done = _done(store, snapshot, config.corpus, model.name)
    shards = []
    for index in range(n_shards):
        start, stop = numbers.shard(index)
        left = _left(Shard(index, start, stop, tuple(coders), config.dense), done)
        if left is not None:
            shards.append(left)
    share = len(shards) / n_shards
    return IngestPlan(
        _run_id(config, corpus, model, coders),
        {**corpus, "n_contexts": numbers.end},
        tuple(coders),
        tuple(shards),
        n_shards,
        round(int(corpus["n_tokens"]) * share),
    )


def without_committed(
    store: LakeStore, snapshot: Snapshot, corpus: str, model: str, shard: Shard
) -> Shard | None:
    """Return what of a shard is not in the snapshot, None if nothing is left."""
    return next(iter(not_committed(store, snapshot, corpus, model, [shard])), None)


def not_committed(
    store: LakeStore, snapshot: Snapshot, corpus: str, model: str, shards: Iterable[Shard]
) -> list[Shard]:
    """Return what of shards is not in the snapshot, of those of which anything is not."""
    done = _done(store, snapshot, corpus, model)
    return [left for shard in shards if (left := _left(shard, done)) is not None]


_Done = tuple[set[tuple[str, int]], set[tuple[str, int, int]]]
"""(sae, shard) and (site, layer, shard) that are committed."""


def _done(store: LakeStore, snapshot: Snapshot, corpus: str, model: str) -> _Done:
    return (
        committed_shards(store, snapshot, corpus),
        committed_dense_shards(store, snapshot, corpus, model),
    )


def _left(shard: Shard, done: _Done) -> Shard | None:
    codes, arrays = done
    coders = tuple(c for c in shard.coders if (c.name, shard.index) not in codes)
    dense = tuple(s for s in shard.dense if (s.site, s.layer, shard.index) not in arrays)
    return replace(shard, coders=coders, dense=dense) if coders or dense else None


def check_precision(
    store: LakeStore,
    snapshot: Snapshot,
    config: IngestConfig,
    dtype: str,
    coders: Iterable[str],
) -> None:
    """Refuse another precision than that of the shards that a coder has on the corpus.

    Args:
        store: the lake.
        snapshot: as of which.
        config: what is asked for.
        dtype: of the activations.
        coders: their names.

    Raises:
        CoderMismatchError: then.
    """
    asked: dict[str, Any] = {
        "activation_bits": config.activation_bits,
        "dtype": dtype,
        "keep": str(parse_keep(config.keep)),
    }
    filters = [("corpus", "=", config.corpus), ("kind", "=", "codes")]
    files = store.read("files", snapshot, ["sae", "run"], filters).to_pylist()
    filters = [("corpus", "=", config.corpus), ("state", "!=", IMPORTED)]
    columns = ["run", "saes", "corpus", "activation_bits", "dtype"]
    runs = store.read("runs", snapshot, columns, filters).to_pylist()
    partly = partly_kept(store, snapshot)
    for coder in coders:
        of_coder = {file["run"] for file in files if file["sae"] == coder}
        keep = str(partly.get((coder, config.corpus), KEEP_ALL))
        mine = [run | {"keep": keep} for run in runs_of(runs, coder, config.corpus, of_coder)]
        for name, value in asked.items():
            stored = sorted({run[name] for run in mine})
            if stored and value not in stored:
                raise CoderMismatchError(
                    f"{name}={value} was asked for; {coder} on {config.corpus} is stored with "
                    f"{' and '.join(map(str, stored))}, and a coder has one {_what(name)} on a "
                    f"corpus; {_advice(value, stored[0])}, or use another lake"
                )


def _what(name: str) -> str:
    return "choice of what is kept" if name == "keep" else "precision"


def _advice(asked: object, stored: object) -> str:
    if asked == ROUNDED:
        return "go on with ingest, which runs the model"
    return (
        "go on with encode, which reads what is stored"
        if stored == ROUNDED
        else (f"ask for {stored}")
    )


def _run_id(
    config: IngestConfig, corpus: dict[str, Any], model: ModelIdentity, coders: list[CoderFiles]
) -> str:
    identity: dict[str, Any] = {
        "corpus": [corpus["corpus"], corpus["source_digest"], corpus["tokenizer_digest"]],
        "model": [model.digest, model.dtype],
        "coders": [[c.name, c.digest] for c in coders],
        "dense": [str(s) for s in config.dense],
        "bits": config.activation_bits,
    }
    if not (keep := parse_keep(config.keep)).is_all:
        identity["keep"] = str(keep)
    return xxhash.xxh3_64_hexdigest(json.dumps(identity, sort_keys=True).encode())


def check_catalogue(
    store: LakeStore,
    snapshot: Snapshot,
    corpus: str,
    model: ModelIdentity,
    coders: Sequence[CoderFiles],
) -> None:
    """Refuse what must not be mixed with what the lake has.

    Raises:
        CoderMismatchError: a name in the lake stands for other bytes, or `corpus` has published
            examples of a coder.
    """
    _check_digests(store, snapshot, model, coders)
    published = published_examples(store, snapshot)
    for coder in coders:
        if (coder.name, corpus) in published:
            raise CoderMismatchError(
                f"ingest of {coder.name} into corpus {corpus!r} was asked for; the lake has "
                "published examples of it there, which must not be mixed with its own firings; "
                "use another corpus, or another lake"
            )


def _check_digests(
    store: LakeStore, snapshot: Snapshot, model: ModelIdentity, coders: Sequence[CoderFiles]
) -> None:
    saes = store.read("saes", snapshot, columns=["sae", "digest"]).to_pylist()
    models = store.read("models", snapshot, columns=["model", "digest"]).to_pylist()
    known = {("SAE", r["sae"]): r["digest"] for r in saes}
    known |= {("model", r["model"]): r["digest"] for r in models}
    given = {("SAE", c.name): c.digest for c in coders}
    given[("model", model.name)] = model.digest
    for (what, name), digest in given.items():
        if known.get((what, name)) not in (None, digest):
            raise CoderMismatchError(
                f"{what} {name} was given with digest {digest}; the lake's {name} has "
                f"{known[what, name]}; they must not be mixed: rename one or use another lake"
            )
