"""Does the whole path agree with the publisher? Published examples, encoded again, and compared.

A sample of an imported corpus's contexts runs through the model and the coder. Every published
firing in them must come out again, and no firing may come out that the publisher's lists should
have and do not: one stronger than the weakest that is listed of its feature, in a context that is
not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from scopelake.errors import CorpusNotFoundError, InvalidArgumentError
from scopelake.ingest.capture import capture
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.coders import CoderFiles, check_fits
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.examples_corpus import Progress
from scopelake.ingest.model import LoadedModel, check_vocabulary
from scopelake.kernels.encode import encode
from scopelake.kernels.weights import EncoderWeights
from scopelake.names import KIND_BOS, check_seed, check_whole, counted
from scopelake.store.catalog import published_examples
from scopelake.store.integrity import check_files
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

TOLERANCE: Final = 0.05
"""Relative. The publisher's activations come from other hardware, perhaps in bfloat16, whose steps
of 0.4 % add up over the layers; a wrong site, layer, model or weight is off by far more."""

MIN_AGREEMENT: Final = 0.95
"""Share of the examples that must agree, and most that may be missing from the lists."""

_BATCH_TOKENS: Final = 4096

_Columns = tuple[npt.NDArray[Any], ...]
"""context (in the sample), position, feature, activation"""


@dataclass(frozen=True)
class SaeCheck:
    """How a coder's own firings compare with its published examples, BOS left out."""

    sae: str
    corpus: str
    n_contexts: int
    """Sampled."""
    n_examples: int
    """Published firings in them."""
    n_agree: int
    """Of these, those that fire within the tolerance, or whose example is as near to the threshold
    and which do not fire."""
    n_silent: int
    """Of these, those that do not fire."""
    n_unlisted: int
    """Features in a context where they fire clearly above the weakest that is listed of them, and
    are not listed."""
    median_error: float | None
    """Relative, over the examples that fire."""
    max_error: float | None

    @property
    def agrees(self) -> bool:
        """Whether the published examples are reproduced."""
        if self.n_examples == 0:
            return False
        enough = self.n_agree >= MIN_AGREEMENT * self.n_examples
        return enough and self.n_unlisted <= (1 - MIN_AGREEMENT) * self.n_examples

    def to_text(self) -> str:
        """Return the comparison in a line."""
        if self.n_examples == 0:
            return (
                f"{self.sae}: not checked, no examples in {counted(self.n_contexts, 'context')} of "
                f"{self.corpus}; sample more"
            )
        errors = "none fires"
        if self.median_error is not None and self.max_error is not None:
            errors = f"relative error {self.median_error:.2%} median, {self.max_error:.2%} largest"
        return (
            f"{self.sae}: {'agrees' if self.agrees else 'DISAGREES'}, "
            f"{self.n_agree / self.n_examples:.1%} of {counted(self.n_examples, 'example')} in "
            f"{counted(self.n_contexts, 'context')} of {self.corpus} ({errors}; "
            f"{self.n_silent:,} do not "
            f"fire; {self.n_unlisted:,} fire unlisted)"
        )

    def __str__(self) -> str:
        return self.to_text()


@dataclass(frozen=True)
class _Rows:
    """Firings: one entry each; contexts count in the sample."""

    context: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]

    def pairs(self) -> npt.NDArray[np.int64]:
        """Return a number for each firing's context and feature."""
        return (self.context << 32) + self.feature


@dataclass(frozen=True)
class _Sample:
    corpus: str
    contexts: npt.NDArray[np.int64]
    """Their numbers in the corpus, ascending."""
    token_ids: list[npt.NDArray[np.int32]]
    kinds: list[npt.NDArray[np.int8]]


def check_sae(
    store: LakeStore,
    snapshot: Snapshot,
    coder: CoderFiles,
    model: LoadedModel,
    *,
    corpus: str | None = None,
    n_contexts: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> SaeCheck:
    """Encode a random sample of contexts again and compare with the published examples.

    Args:
        store: a lake into which the examples of `coder` were imported.
        snapshot: what of it is read.
        coder: with its weights.
        model: the model that it was trained on.
        corpus: which of the corpora with examples of it, if there are several.
        n_contexts: size of the sample.
        seed: of the sample.
        progress: called with (coder, contexts done, of how many).

    Raises:
        CoderMismatchError: the coder does not fit the model.
        CorpusNotFoundError: the lake has no published examples of it.
        InvalidArgumentError: `n_contexts` is below 1, `seed` out of range, or several corpora fit.
    """
    if check_whole("n_contexts", n_contexts) < 1:
        raise InvalidArgumentError(
            f"n_contexts={n_contexts} was asked for; a sample has at least one; give 1 or more"
        )
    check_seed(seed)
    check_fits(coder, model)
    sample = _sample(
        store, snapshot, _corpus(store, snapshot, coder.name, corpus), n_contexts, seed
    )
    check_vocabulary(model, sample.token_ids, sample.corpus)
    listed, weakest = _listed(store, snapshot, coder, sample)
    (encoder,) = load_encoders(coder, model.device)
    found = _encode(coder, encoder, model, sample, progress)
    return _compare(coder, encoder, sample, listed, weakest, found)


def _corpus(store: LakeStore, snapshot: Snapshot, sae: str, asked: str | None) -> str:
    there = sorted(c for s, c in published_examples(store, snapshot) if s == sae)
    if asked in there:
        return str(asked)
    if not there or asked is not None:
        raise CorpusNotFoundError(
            f"published examples of {sae} on {'any corpus' if asked is None else repr(asked)} were "
            f"asked for; the lake has them on {', '.join(there) or 'none'}; import them first"
        )
    if len(there) > 1:
        raise InvalidArgumentError(
            f"a check of {sae} was asked for; the lake has examples of it on {', '.join(there)}; "
            "name one with corpus=..."
        )
    return there[0]


def _sample(
    store: LakeStore, snapshot: Snapshot, corpus: str, n_contexts: int, seed: int
) -> _Sample:
    counts = store.read("corpora", snapshot, ["n_contexts"], [("corpus", "=", corpus)])
    n = int(counts["n_contexts"][0].as_py())
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(n, size=min(n, n_contexts), replace=False))
    filters = [("corpus", "=", corpus), ("context", "in", chosen.tolist())]
    columns = ["context", "token_ids", "kinds"]
    rows = store.read("contexts", snapshot, columns, filters).sort_by("context").to_pylist()
    return _Sample(
        corpus,
        chosen,
        [np.array(row["token_ids"], dtype=np.int32) for row in rows],
        [np.array(row["kinds"], dtype=np.int8) for row in rows],
    )


def _listed(
    store: LakeStore, snapshot: Snapshot, coder: CoderFiles, sample: _Sample
) -> tuple[_Rows, npt.NDArray[np.float32]]:
    """Return the sample's examples, and each feature's weakest of all contexts (inf: none)."""
    weakest = np.full(coder.width, np.inf, dtype=np.float32)
    names = ("context", "position", "feature", "activation")
    parts: list[_Columns] = []
    files = store.data_files("peaks", snapshot, sae=coder.name, corpus=sample.corpus)
    check_files(store.root, (file.path for file in files))
    for file in files:
        table = pq.read_table(store.root.open(file.path), columns=list(names))
        columns = [table[name].to_numpy() for name in names]
        np.minimum.at(weakest, columns[2], columns[3])
        keep = np.isin(columns[0], sample.contexts)
        context, *others = (values[keep] for values in columns)
        parts.append((np.searchsorted(sample.contexts, context), *others))
    return _rows(parts), weakest


def _encode(
    coder: CoderFiles,
    encoder: EncoderWeights,
    model: LoadedModel,
    sample: _Sample,
    progress: Progress | None,
) -> _Rows:
    (site,), done = coder.sites, 0
    parts: list[_Columns] = []
    for group in batches([len(ids) for ids in sample.token_ids], _BATCH_TOKENS):
        lengths = [len(sample.token_ids[i]) for i in group]
        x = capture(model, [sample.token_ids[i] for i in group], [site])[site]
        codes = encode(x, encoder)
        token = codes.token_index().cpu().numpy()
        columns = (
            np.repeat(group, lengths)[token],
            np.concatenate([np.arange(n) for n in lengths])[token],
            codes.features.cpu().numpy(),
            codes.activations.cpu().numpy(),
        )
        keep = np.concatenate([sample.kinds[i] for i in group])[token] != KIND_BOS
        parts.append(tuple(column[keep] for column in columns))
        done += len(group)
        if progress is not None:
            progress(coder.name, done, len(sample.token_ids))
    return _rows(parts)


def _rows(parts: list[_Columns]) -> _Rows:
    types = (np.int64, np.int64, np.int64, np.float32)
    empty: _Columns = tuple(np.empty(0, dtype) for dtype in types)
    columns = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return _Rows(*(c.astype(dtype) for c, dtype in zip(columns, types, strict=True)))


def _compare(
    coder: CoderFiles,
    encoder: EncoderWeights,
    sample: _Sample,
    listed: _Rows,
    weakest: npt.NDArray[np.float32],
    found: _Rows,
) -> SaeCheck:
    threshold = encoder.threshold.float().cpu().numpy()
    again = _look_up(listed, found)
    fires = again > 0
    error = np.abs(again[fires] - listed.activation[fires]) / listed.activation[fires]
    # An example that close above its threshold may fall below it.
    ratio = listed.activation / np.maximum(threshold[listed.feature], np.finfo(np.float32).tiny)
    near = np.abs(ratio - 1) <= TOLERANCE
    strong = found.activation > weakest[found.feature] * (1 + TOLERANCE)
    return SaeCheck(
        sae=coder.name,
        corpus=sample.corpus,
        n_contexts=len(sample.contexts),
        n_examples=len(listed.activation),
        n_agree=int((error <= TOLERANCE).sum()) + int((near & ~fires).sum()),
        n_silent=int((~fires).sum()),
        n_unlisted=len(np.setdiff1d(found.pairs()[strong], listed.pairs())),
        median_error=float(np.median(error)) if len(error) else None,
        max_error=float(error.max()) if len(error) else None,
    )


def _look_up(wanted: _Rows, rows: _Rows) -> npt.NDArray[np.float32]:
    """Return, of each address wanted, its activation in `rows`; 0 where it does not fire."""
    keys = np.stack([rows.pairs(), rows.position])
    asked = np.stack([wanted.pairs(), wanted.position])
    _, index = np.unique(np.concatenate([keys, asked], axis=1), axis=1, return_inverse=True)
    activation = np.zeros(int(index.max(initial=-1)) + 1, dtype=np.float32)
    activation[index[: keys.shape[1]]] = rows.activation
    return activation[index[keys.shape[1] :]]
