"""What fired here: the features of a context, or of one token in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import (
    ContextNotFoundError,
    CorpusNotFoundError,
    InvalidArgumentError,
    QueryError,
)
from scopelake.names import KIND_BOS, FiringRanking, check_whole, counted, visible
from scopelake.query.connect import Connection
from scopelake.query.coverage import Coverage
from scopelake.query.resolve import SaeInfo, resolve_sae
from scopelake.query.scores import Scores, check_by, scores
from scopelake.query.windows import context_texts
from scopelake.store.context_numbers import NUMBER_COLUMNS, ContextNumbers
from scopelake.store.firings import rank_in_group
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd


_COLUMNS: Final = ("sae", "position", "feature", "activation", "kind")

MEANINGS: Final = {
    "mean": "activation over the mean of the feature",
    "max": "activation over the max of the feature",
    "surprise": "surprise, bits",
}

_HEADS: Final = {"sae": "SAE", "n_firings": "firings"}


@dataclass(frozen=True)
class FeaturesAt:
    """What fired in a context, by position, strongest first."""

    corpus: str
    context: int
    table: pa.Table
    """sae, layer, site, position, token, feature, activation, score; by position, then score
    (highest first), activation, SAE and feature. Of a whole context, n_firings besides, each
    feature once at its highest score, and by score."""
    by: FiringRanking
    """What the score is."""
    whole: bool = False
    """Whether each feature of the context is there once, not each firing."""
    note: str = ""
    """What the answer is short of: SAEs of which not all firings are known here, or whose
    ingest has not come to this context."""

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame."""
        return self.table.to_pandas()

    def to_text(self, *, color: bool = False) -> str:
        """Return a line for each token, and under it one for each firing; or one a feature."""
        bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
        lines = [f"context {self.context} of {self.corpus}"]
        if self.by != "activation":
            lines[0] += f", by {MEANINGS[self.by]}"
        position = None
        for row in self.table.to_pylist():
            if not self.whole and row["position"] != position:
                position = row["position"]
                lines.append(f"{bold}{position:6d}  {visible(row['token'])}{plain}")
            lines.append("        " + self._firing(row))
        if self.table.num_rows == 0:
            lines.append("        nothing fires in what was asked for")
        lines += [f"({self.note})"] if self.note else []
        return "\n".join(lines)

    def _firing(self, row: dict[str, Any]) -> str:
        score = "" if self.by == "activation" else f"{_shown(row['score']):>8s}  "
        text = f"{score}{row['activation']:10.4g}  {row['feature']:7d}  {row['sae']}"
        if self.whole:
            text += f"  {row['n_firings']} times, at {row['position']} {visible(row['token'])}"
        return text

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        names = ["position", "token", "sae", "feature", "activation"]
        names += ["score"] if self.by != "activation" else []
        names += ["n_firings"] if self.whole else []
        head = "".join(f"<th>{_HEADS.get(name, name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{_cell(name, row[name])}</td>' for name in names)}</tr>"
            for row in self.table.to_pylist()
        )
        meaning = "" if self.by == "activation" else f", by {MEANINGS[self.by]}"
        return (
            f"<b>context {self.context}</b> of {escape(self.corpus)}{meaning}"
            f"<table><tr>{head}</tr>{body}</table>{escape(self.note)}"
        )


def _shown(score: float | None) -> str:
    return "?" if score is None else f"{score:.3g}"


def _cell(name: str, value: Any) -> str:  # noqa: ANN401
    if name == "token":
        return f"<code>{escape(visible(value))}</code>"
    if name == "score":
        return _shown(value)
    return f"{value:.4g}" if name == "activation" else escape(str(value))


def features_at(
    connection: Connection,
    store: LakeStore,
    snapshot: Snapshot,
    saes: Sequence[SaeInfo],
    context: int,
    position: int | None = None,
    *,
    corpus: str | None = None,
    sae: str | None = None,
    k: int | None = None,
    by: FiringRanking = "activation",
    usual: str | None = None,
    whole: bool = False,
    statistics: Connection | None = None,
) -> FeaturesAt:
    """Return the firings of a context or of one token, ranked at each position; or its features.

    Args:
        connection: from `connect`.
        store: the lake.
        snapshot: what of it is read.
        saes: from `list_saes`.
        context: number of the context.
        position: only this token.
        corpus: may be left out when the lake has one.
        sae: only this one, by name or unique ending.
        k: at most so many firings of each SAE at each token; or features of each SAE.
        by: what ranks them, see `scores`.
        usual: the corpus that says what is usual for a feature; the context's own if None.
        whole: rank the features of the context, each at its highest score; not on BOS.
        statistics: of the lake that has what is usual, if it is another one.

    Raises:
        ContextNotFoundError: there is no such context or position.
        CorpusNotFoundError: the lake has no such corpus.
        SaeNotFoundError, AmbiguousSaeError: `sae` does not name one.
        InvalidArgumentError: `k` is below 1, there is no such ranking, no corpus is named and the
            lake has several, or a whole context and a position are asked for.
        QueryError: of `sae`, or of all, not all firings are known in this context.
        NotIngestedError: `sae`, or any, was not run on this corpus, or not yet on this context; or
            an SAE has no statistics on the corpus that says what is usual.
    """
    check_k(k)
    check_by(by)
    if whole and position is not None:
        raise InvalidArgumentError(
            f"the features of a whole context were asked for at position {position}; a token has "
            "firings; leave one of the two out"
        )
    name = _corpus(store, snapshot, corpus)
    texts = context_texts(connection, [(name, context)])
    if (name, context) not in texts:
        raise ContextNotFoundError(
            f"context {context} of corpus {name!r} was asked for; it has contexts "
            f"{_numbers(store, snapshot, name)}; choose one of them"
        )
    pieces = texts[name, context].pieces(0, texts[name, context].n_tokens)
    if position is not None and not 0 <= position < len(pieces):
        raise ContextNotFoundError(
            f"position {position} of context {context} of {name!r} was asked for; it has positions "
            f"0 to {len(pieces) - 1}; choose one of them"
        )
    document = texts[name, context].document(0)
    only, note = _chosen(connection.coverage, saes, sae, (name, context, document))
    filters = [("corpus", "=", name), ("context", "=", context)]
    filters += [("position", "=", position)] if position is not None else []
    filters += [("sae", "=", only)] if only else []
    rows = connection.rows("codes", _COLUMNS, filters)
    if whole:
        rows = rows.filter(pc.not_equal(rows["kind"], KIND_BOS))
    statistics = statistics or connection
    if usual is not None:
        statistics.coverage.check_corpus(usual)
    score = scores(statistics, rows, by, usual or name)
    table = _ranked({s.name: s for s in saes}, rows, score, pieces, k=k, whole=whole)
    return FeaturesAt(name, context, table, by, whole, note)


def _ranked(
    saes: Mapping[str, SaeInfo],
    rows: pa.Table,
    score: Scores,
    pieces: Sequence[str],
    *,
    k: int | None,
    whole: bool,
) -> pa.Table:
    """Return the rows of `FeaturesAt`, of the firings of a context and their scores."""
    held = {name: rows[name].to_numpy() for name in ("position", "feature", "activation")}
    named = rows["sae"].combine_chunks().dictionary_encode()
    names = np.array(named.dictionary.to_pylist(), dtype=object)
    # SAEs by name, so that their numbers are in that order.
    rank = np.argsort(np.argsort(names))
    sae = rank[named.indices.to_numpy()] if len(names) else np.zeros(0, np.int64)
    names = np.sort(names)
    known = np.where(np.isnan(score), -np.inf, score)
    order = np.lexsort((held["position"], held["feature"], sae, -held["activation"], -known))
    n_firings = None
    if whole:
        # The first of each feature in that order is the one at its highest score.
        key = sae * (1 << 32) + held["feature"]
        _, first, counts = np.unique(key[order], return_index=True, return_counts=True)
        by_score = np.argsort(first)
        order, n_firings = order[first[by_score]], counts[by_score]
        keep = _first_of_each(sae[order], k)
    else:
        order = order[np.argsort(held["position"][order], kind="stable")]
        keep = _first_of_each(held["position"][order].astype(np.int64) * len(names) + sae[order], k)
    order = order[keep]
    position, feature = held["position"][order], held["feature"][order]
    of = [saes[name] for name in names[sae[order]]]
    table = pa.table(
        {
            "sae": pa.array([s.name for s in of], pa.string()),
            "layer": pa.array(
                [s.layer_of(int(f)) for s, f in zip(of, feature, strict=True)], pa.int32()
            ),
            "site": pa.array([s.site for s in of], pa.string()),
            "position": position,
            "token": pa.array([pieces[p] for p in position], pa.string()),
            "feature": feature,
            "activation": held["activation"][order],
            "score": pa.array(score[order], mask=np.isnan(score[order])),
        }
    )
    if n_firings is None:
        return table
    return table.append_column("n_firings", pa.array(n_firings[keep], pa.int64()))


def _first_of_each(group: npt.NDArray[Any], k: int | None) -> npt.NDArray[np.bool_]:
    """Whether a row is one of the first `k` of its group, in the order of the rows."""
    if k is None:
        return np.ones(len(group), bool)
    order = np.argsort(group, kind="stable")
    found = np.empty(len(group), bool)
    found[order] = rank_in_group(group[order]) < k
    return found


def _is_known(sae: SaeInfo, corpus: str, document: str) -> bool:
    return corpus not in sae.partial or sae.partial[corpus].has(document)


def _chosen(
    coverage: Coverage, saes: Sequence[SaeInfo], sae: str | None, where: tuple[str, int, str]
) -> tuple[str | None, str]:
    """Return the name of the one SAE asked for, and of which others nothing is known here.

    Args:
        coverage: of the lake.
        saes: those of the lake.
        sae: the one asked for, if one is.
        where: corpus, context and the context's document.
    """
    corpus, context, document = where
    if sae is not None:
        only = resolve_sae(saes, sae=sae, preferred=coverage.saes(corpus))
        if not _is_known(only, corpus, document):
            raise QueryError(
                f"what fires of {only.name} in context {context} was asked for; on corpus "
                f"{corpus!r} not all its firings are known ({only.partial[corpus].what}); ingest "
                "it into another corpus, or ask for top contexts"
            )
        coverage.check_known(only, corpus)
        coverage.check_shard([only.name], corpus, context)
        return only.name, ""
    unknown = {s.name for s in saes if not _is_known(s, corpus, document)}
    coverage.check_any(corpus, unknown)
    missing = coverage.check_shard(coverage.saes(corpus) - unknown, corpus, context)
    parts = [
        f"without {counted(n, 'SAE')} {why}"
        for n, why in (
            (len(unknown), "of which not all firings are known here"),
            (len(missing), "whose ingest has not come to this context"),
        )
        if n
    ]
    return None, "; ".join(parts)


def check_k(k: int | None) -> None:
    """Refuse a number of firings that is none, or below 1.

    Raises:
        InvalidArgumentError: it is.
    """
    if k is not None and check_whole("k", k) < 1:
        raise InvalidArgumentError(f"k={k} was asked for; k is a number of firings; give 1 or more")


def _corpus(store: LakeStore, snapshot: Snapshot, corpus: str | None) -> str:
    there = sorted(store.read("corpora", snapshot, ["corpus"])["corpus"].to_pylist())
    if corpus in there:
        return str(corpus)
    if corpus is None and len(there) == 1:
        return str(there[0])
    if corpus is None and there:
        raise InvalidArgumentError(
            f"a context was asked for without a corpus; the lake has {', '.join(there)}; name one "
            "with corpus=..."
        )
    raise CorpusNotFoundError(
        f"corpus {corpus!r} was asked for; the lake has {', '.join(there) or 'none'}; name one of "
        "them"
    )


def _numbers(store: LakeStore, snapshot: Snapshot, corpus: str) -> str:
    """Return in words the numbers of a corpus's contexts."""
    rows = store.read("corpora", snapshot, NUMBER_COLUMNS, [("corpus", "=", corpus)]).to_pylist()
    return ", ".join(f"{start} to {stop - 1}" for start, stop in ContextNumbers.of(rows[0]).ranges)
