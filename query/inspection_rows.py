"""From a prompt's rows in a lake to an `Inspection`: what fired, and how unusual that is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import InvalidArgumentError, NotIngestedError
from scopelake.names import KIND_BOS, KINDS, ROLES, FiringRanking
from scopelake.query.connect import Connection
from scopelake.query.firing import check_k, features_at
from scopelake.query.inspection import Inspection
from scopelake.query.percentiles import percentiles
from scopelake.query.resolve import SaeInfo, list_saes
from scopelake.query.scores import check_by
from scopelake.query.windows import context_texts
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_INSPECTION: Final = re.compile(r"inspection-\d+")
_PROMPT: Final = re.compile(r"prompt(; |$)")

_SAES: Final = 2
"""Of which firings are counted at once."""

Pieces = Callable[[Sequence[int]], list[str]]
"""From token ids to the text of each."""


@dataclass(frozen=True)
class InspectionConfig:
    """How firings are ranked and with which corpus they are compared."""

    k: int | None = 10
    """At most so many firings of each SAE at each token; None: all."""
    by: FiringRanking = "activation"
    against: str | None = None
    """None: the largest corpus on which all the SAEs are complete, if there is one."""

    def __post_init__(self) -> None:
        check_k(self.k)
        check_by(self.by)


@dataclass(frozen=True)
class Comparison:
    """The corpus with which a prompt is compared, in the lake that has it."""

    connection: Connection
    corpus: str | None
    note: str
    """Why there is none."""
    saes: Mapping[str, SaeInfo]
    """By name, those SAEs of the lake that are compared."""


def find_comparison(
    connection: Connection,
    store: LakeStore,
    snapshot: Snapshot,
    saes: Sequence[str],
    config: InspectionConfig,
) -> Comparison:
    """Return the corpus that `config` names, or the largest on which all the SAEs are complete.

    Corpora that are inspected prompts are not chosen.

    Raises:
        CorpusNotFoundError: the lake has no such corpus.
        NotIngestedError: an SAE has no statistics of its firings on it.
        InvalidArgumentError: nothing says what is usual, and the ranking needs it.
    """
    there = {s.name: s for s in list_saes(store, snapshot) if s.name in set(saes)}
    complete: dict[str, set[str]] = {}
    for file in store.data_files("features", snapshot):
        sae, corpus = there.get(file.partition["sae"]), file.partition["corpus"]
        published = sae is not None and corpus in sae.partial and sae.partial[corpus].keep is None
        if sae is not None and not published:
            complete.setdefault(corpus, set()).add(sae.name)
    if config.against is not None:
        connection.coverage.check_corpus(config.against)
        if missing := sorted(set(saes) - complete.get(config.against, set())):
            raise NotIngestedError(
                f"a comparison with corpus {config.against!r} was asked for; {missing[0]} has no "
                "statistics of its firings there; ingest it there to the end, or leave against out"
            )
        return Comparison(connection, config.against, "", there)
    rows = store.read("corpora", snapshot, ["corpus", "n_tokens", "source"]).to_pylist()
    fitting = [
        (-row["n_tokens"], row["corpus"])
        for row in rows
        if complete.get(row["corpus"], set()) >= set(saes)
        and not (_INSPECTION.fullmatch(row["corpus"]) and _PROMPT.match(row["source"]))
    ]
    if fitting:
        return Comparison(connection, min(fitting)[1], "", there)
    if config.by != "activation":
        raise InvalidArgumentError(
            f"by={config.by!r} was asked for; on no corpus of the lake all these SAEs are "
            "complete, which would say what is usual; ingest one, or rank by activation"
        )
    note = "no percentiles: on no corpus of the lake all these SAEs are complete"
    return Comparison(connection, None, note, there)


def read_inspection(
    connection: Connection,
    store: LakeStore,
    snapshot: Snapshot,
    corpus: str,
    comparison: Comparison,
    config: InspectionConfig,
    pieces: Pieces,
    promoted: Mapping[str, pa.Array],
    *,
    model: str,
    errors: pa.Table,
    kept: bool,
) -> Inspection:
    """Return what an ingested prompt shows.

    Args:
        connection: to the lake with the prompt.
        store: that lake.
        snapshot: what of it is read.
        corpus: the prompt's.
        comparison: what it is compared with.
        config: how firings are ranked.
        pieces: of the model's tokenizer.
        promoted: by SAE the ids of the tokens that each feature's decoder promotes, or null.
        model: its name.
        errors: of the reconstructions: sae, layer, site, position, unexplained, error, norm.
        kept: whether the corpus stays.
    """
    is_ranked = config.by != "activation"
    fired = features_at(
        connection, store, snapshot, list_saes(store, snapshot), 0, corpus=corpus, k=config.k,
        by=config.by, usual=comparison.corpus if is_ranked else None,
        statistics=comparison.connection,
    )  # fmt: skip
    tokens = _tokens(connection, corpus)
    firings = _with_percentiles(fired.table, tokens, connection, corpus, comparison)
    firings = _with_meanings(firings, comparison.connection, pieces, promoted)
    notes = "; ".join(note for note in (comparison.note, fired.note) if note)
    return Inspection(
        corpus if kept else None, model, tokens, firings, errors, config.by, config.k,
        comparison.corpus, notes,
    )  # fmt: skip


def _tokens(connection: Connection, corpus: str) -> pa.Table:
    text = context_texts(connection, [(corpus, 0)])[corpus, 0]
    filters = [("corpus", "=", corpus), ("context", "=", 0)]
    (row,) = connection.rows("contexts", ("roles", "turns", "kinds"), filters).to_pylist()
    return pa.table(
        {
            "position": pa.array(range(text.n_tokens), pa.int32()),
            "token": pa.array(text.pieces(0, text.n_tokens), pa.string()),
            "role": pa.array([ROLES[r] for r in row["roles"]], pa.string()),
            "turn": pa.array(row["turns"], pa.int32()),
            "kind": pa.array([KINDS[k] for k in row["kinds"]], pa.string()),
        }
    )


def _with_percentiles(
    firings: pa.Table, tokens: pa.Table, prompt: Connection, corpus: str, comparison: Comparison
) -> pa.Table:
    """Return firings with percentile and percentile_error; null on BOS, and without a corpus."""
    found, error = np.full((2, firings.num_rows), np.nan)
    if (usual := comparison.corpus) is not None:
        is_bos = pc.equal(tokens["kind"], KINDS[KIND_BOS]).to_numpy()
        counts = ~is_bos[firings["position"].to_numpy()]

        def of_sae(name: str, at: npt.NDArray[np.int64]) -> None:
            rows = at[counts[at]]
            columns = (firings[n].to_numpy()[rows] for n in ("feature", "activation"))
            found[rows], error[rows] = percentiles(
                comparison.connection, comparison.saes[name], usual, *columns,
                bits=min(prompt.coverage.bits(name, corpus)),
            )  # fmt: skip

        with ThreadPoolExecutor(_SAES) as pool:
            # Its results are awaited in turn: after an error no more is begun.
            list(pool.map(of_sae, *zip(*_by_sae(firings), strict=True)))
    for name, values in (("percentile", found), ("percentile_error", error)):
        firings = firings.append_column(name, pa.array(values, mask=np.isnan(values)))
    return firings


def _with_meanings(
    firings: pa.Table, labels: Connection, pieces: Pieces, promoted: Mapping[str, pa.Array]
) -> pa.Table:
    """Return firings with the label of each feature, and the tokens that its decoder promotes."""
    label: list[str | None] = [None] * firings.num_rows
    tokens: list[list[str] | None] = [None] * firings.num_rows
    for name, at in _by_sae(firings):
        feature = firings["feature"].to_numpy()[at]
        features = np.unique(feature)
        of = [("sae", "=", name), ("feature", "in", features.tolist())]
        known = _joined(labels.rows("labels", ("feature", "label", "source"), of))
        ids = promoted[name].take(pa.array(features)).to_pylist()
        top = {
            f: None if of_one is None else pieces(of_one)
            for f, of_one in zip(features.tolist(), ids, strict=True)
        }
        for i, f in zip(at.tolist(), feature.tolist(), strict=True):
            label[i], tokens[i] = known.get(f), top.get(f)
    firings = firings.append_column("label", pa.array(label, pa.string()))
    return firings.append_column("top_tokens", pa.array(tokens, pa.list_(pa.string())))


def _joined(labels: pa.Table) -> dict[int, str]:
    """Return the labels of each feature as one text, by source."""
    found: dict[int, list[str]] = {}
    rows: list[dict[str, Any]] = labels.to_pylist()
    for row in sorted(rows, key=lambda r: (r["source"] or "", r["label"] or "")):
        if row["label"] and row["label"] not in found.setdefault(row["feature"], []):
            found[row["feature"]].append(row["label"])
    return {feature: " | ".join(texts) for feature, texts in found.items() if texts}


def _by_sae(firings: pa.Table) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Return each SAE with the numbers of its rows."""
    coded = firings["sae"].combine_chunks().dictionary_encode()
    names, index = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    return [(name, np.flatnonzero(index == i)) for i, name in enumerate(names)]
