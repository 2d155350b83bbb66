"""The contexts of a feature that a dashboard shows: its strongest, with every activation there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.query.export_source import Chunk, ExportSource
from scopelake.query.exporter import All, ExportOptions
from scopelake.query.windows import ContextText, Key, Span, context_texts

_CONTEXTS: Final = 20
_WINDOW: Final = 32

_AT_ONCE: Final = 1_024
"""Contexts whose text is in memory at once, unless one feature has more."""

_LISTED: Final = pa.schema(
    [("feature", pa.int32()), ("rank", pa.int32()), ("context", pa.int64()),
     ("document", pa.string()), ("position", pa.int32()), ("first_position", pa.int32()),
     ("activation", pa.float32())]
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A context, or what is around its peak."""

    context: int
    document: str
    start: int
    """Position of the first token that is shown."""
    peak: int
    """Where among these the feature is strongest."""
    tokens: list[str]
    values: npt.NDArray[np.float32]
    """Activation of each, 0 where it does not fire, and on BOS."""


@dataclass(frozen=True)
class Shown:
    """A feature, all its firings but those on BOS, and its examples, strongest first."""

    feature: int
    firings: Chunk
    examples: list[Example]
    n_contexts: int
    """In which it fires."""


@dataclass(frozen=True)
class _Chosen:
    """A feature's contexts before their text is read."""

    feature: int
    firings: Chunk
    context: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    """Of the peak in each context."""
    n_contexts: int


def examples(source: ExportSource, options: ExportOptions) -> Iterator[Shown]:
    """Yield each feature, ascending, with its strongest contexts; equal ones in their order."""
    k = options.k or _CONTEXTS
    window = _WINDOW if options.window is None else options.window
    waiting: list[_Chosen] = []
    for chunk in source.chunks():
        for feature, firings in chunk.each():
            chosen = _choose(feature, firings, k)
            held = sum(len(one.context) for one in waiting)
            if waiting and held + len(chosen.context) > _AT_ONCE:
                yield from _with_text(source, waiting, window)
                waiting = []
            waiting.append(chosen)
        # The chunk's firings are let go with it.
        yield from _with_text(source, waiting, window)
        waiting = []


def _choose(feature: int, firings: Chunk, k: int | All) -> _Chosen:
    """Return where a feature is strongest, each context once, the strongest `k` first."""
    strongest = np.lexsort((firings.position, -firings.activation, firings.context))
    context = firings.context[strongest]
    first = strongest[np.flatnonzero(np.diff(context, prepend=-1))]
    order = first[np.lexsort((firings.context[first], -firings.activation[first]))]
    kept = order if k == "all" else order[:k]
    return _Chosen(feature, firings, firings.context[kept], firings.position[kept], len(order))


def _with_text(source: ExportSource, chosen: list[_Chosen], window: int | All) -> Iterator[Shown]:
    spans: dict[Key, Span] | None = None if window == "all" else {}
    keys = {(source.corpus, int(c)): None for one in chosen for c in one.context}
    if spans is not None and window != "all":
        for one in chosen:
            for context, position in zip(one.context, one.position, strict=True):
                key = (source.corpus, int(context))
                start, stop = spans.get(key, (int(position), int(position)))
                spans[key] = (
                    min(start, max(int(position) - window, 0)),
                    max(stop, int(position) + window + 1),
                )
    texts = context_texts(source.connection, list(keys), spans)
    for one in chosen:
        found = [
            _example(one.firings, int(c), int(p), texts[source.corpus, int(c)], window)
            for c, p in zip(one.context, one.position, strict=True)
        ]
        yield Shown(one.feature, one.firings, found, one.n_contexts)


def _example(
    firings: Chunk, context: int, position: int, text: ContextText, window: int | All
) -> Example:
    start, stop = 0, text.n_tokens
    if window != "all":
        start, stop = max(position - window, 0), min(position + window + 1, stop)
    values = np.zeros(stop - start, np.float32)
    low, high = np.searchsorted(firings.context, [context, context + 1])
    at, activation = firings.position[low:high], firings.activation[low:high]
    inside = (at >= start) & (at < stop)
    values[at[inside] - start] = activation[inside]
    pieces = text.pieces(start, stop)
    return Example(context, text.document(position), start, position - start, pieces, values)


class ExampleList:
    """The file that says which context of the lake each example is, as dashboards do not."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, _LISTED, compression="zstd")
        self._rows: list[dict[str, object]] = []
        self.n_left_out = 0
        """Contexts with firings that are no examples."""
        self.n_firings = 0
        """That are in the examples."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._file.close()

    def add(self, shown: Shown) -> None:
        """Write down the examples of a feature."""
        self.n_left_out += shown.n_contexts - len(shown.examples)
        self.n_firings += sum(int(np.count_nonzero(e.values)) for e in shown.examples)
        self._rows += [
            {
                "feature": shown.feature,
                "rank": rank,
                "context": e.context,
                "document": e.document,
                "position": e.start + e.peak,
                "first_position": e.start,
                "activation": float(e.values[e.peak]),
            }
            for rank, e in enumerate(shown.examples)
        ]
        if len(self._rows) >= _AT_ONCE * 16:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=_LISTED))
        self._rows = []


def left_out(source: ExportSource, listed: ExampleList, options: ExportOptions) -> list[str]:
    """Return what dashboards are short of, whatever their format."""
    window = _WINDOW if options.window is None else options.window
    n_on_bos = int(source.n_on_bos.sum())
    n_spoken = int(source.n_firings.sum()) - n_on_bos
    said = [
        "Token ids, roles, turns, kinds, metadata and labels; examples.parquet says which context "
        "and position of the lake each example is.",
    ]
    if n_on_bos:
        said.append(
            f"Firings on BOS, {n_on_bos:,} of them: statistics and examples leave them out, as the "
            "lake's do."
        )
    if listed.n_firings < n_spoken:
        said.append(
            f"{n_spoken - listed.n_firings:,} of the {n_spoken:,} firings that are not on BOS: "
            "statistics are of all, examples of some contexts and tokens."
        )
    if listed.n_left_out:
        said.append(
            f"{listed.n_left_out:,} contexts with weaker firings: the {options.k or _CONTEXTS} "
            "strongest of each feature are in it (k)."
        )
    if window != "all":
        said.append(f"Tokens more than {window} from the peak of an example (window).")
    if not source.has_texts:
        said.append(
            "The text of promoted and suppressed tokens: the tokenizer "
            f"{source.corpus_row['tokenizer']} is not on this machine, they are shown as #id."
        )
    return said
