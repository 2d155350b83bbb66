"""Dashboards as Neuronpedia takes them: SAEDashboard's ``batch-<n>.json``.

The fields are those of SAEDashboard 0.8.0's `NeuronpediaDashboardBatch`, `-Feature` and
`-Activation` (sae_dashboard/neuronpedia/neuronpedia_dashboard.py), which Neuronpedia's
convert-saedashboard-to-neuronpedia-export.py reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scopelake.query.export_examples import Example, ExampleList, Shown, examples, left_out
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions, Progress, Written

_BATCH: Final = 128
"""Features in a file, as SAEDashboard's runner has by default."""

_BINS: Final = 50

_UNKNOWN: Final = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_indices", "correlated_features_l1", "correlated_features_pearson",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
    "vector",
)  # fmt: skip
"""Fields that take the weights of the coder or the model, which are not in a lake."""

_USAGE: Final = """
import json
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

batch = NeuronpediaDashboardBatch(**json.load(open("{file}")))
"""


class NeuronpediaExporter:
    """Writes ``batch-<n>.json``, ``skipped_indexes.json`` and ``examples.parquet``.

    Of a cross-layer transcoder the first two are in ``layer_<n>/``.
    """

    name = "neuronpedia"
    about = "Feature dashboards for Neuronpedia (SAEDashboard 0.8.0)"
    takes = frozenset({"k", "window"})

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder; see `Exporter`."""
        n = len(source.features)
        batches = _Batches(source, folder)
        with ExampleList(folder / "examples.parquet") as listed:
            for done, shown in enumerate(examples(source, options), 1):
                batches.add(shown)
                listed.add(shown)
                if done % _BATCH == 0 or done == n:
                    progress("features", done, n)
        batches.finish()
        said = [
            *left_out(source, listed, options),
            "Neuron alignment, correlated neurons and features, histograms of logits, decoder "
            "weights and vectors: they take weights that a lake does not have; their lists are "
            "empty.",
        ]
        first = batches.folder_of(source.place(int(source.features[0]))[0]) / "batch-0.json"
        usage = _USAGE.format(file=first.relative_to(folder).as_posix())
        return Written(tuple(said), usage, n_firings=listed.n_firings)


class _Batches:
    """The files of each layer; of a coder with features of several layers in folders of their own.

    Neuronpedia's sources are of one layer, and number the features anew in each.
    """

    def __init__(self, source: ExportSource, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._of_layer = source.sae_row["features_per_layer"] or source.sae.width
        self._layer: int | None = None
        self._waiting: list[dict[str, Any]] = []
        self._number = 0

    def folder_of(self, layer: int) -> Path:
        """Return where a layer's files lie."""
        if self._of_layer == self._source.sae.width:
            return self._folder
        return self._folder / f"layer_{layer}"

    def add(self, shown: Shown) -> None:
        """Take a feature; they come in ascending order."""
        layer, feature = self._source.place(shown.feature)
        if layer != self._layer:
            self.finish()
            self._layer, self._number = layer, 0
            self.folder_of(layer).mkdir(exist_ok=True)
            self._write_skipped(shown.feature - feature)
        self._waiting.append(_feature(self._source, shown, feature))
        if len(self._waiting) == _BATCH:
            self.finish()

    def finish(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        batch = self._head() | {"layer": self._layer, "sae_id_suffix": None,
                                "features": self._waiting}  # fmt: skip
        self._write(f"batch-{self._number}.json", batch)
        self._waiting, self._number = [], self._number + 1

    def _write_skipped(self, first: int) -> None:
        """Write which features were not asked for, as SAEDashboard's runner does.

        Args:
            first: the lake's number of the layer's first feature.
        """
        others = np.setdiff1d(np.arange(self._of_layer), self._source.features - first)
        skipped = {"layer": str(self._layer), "skipped_indexes": others.tolist()}
        self._write("skipped_indexes.json", self._head() | skipped)

    def _head(self) -> dict[str, Any]:
        source = self._source
        return {"model_id": (source.model or "").rsplit("/", 1)[-1], "sae_set": source.sae.name}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        assert self._layer is not None
        (self.folder_of(self._layer) / name).write_text(
            json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8"
        )


def _feature(source: ExportSource, shown: Shown, number: int) -> dict[str, Any]:
    activation = shown.firings.activation
    heights, middles = histogram(activation, _BINS)
    known = source.logits(shown.feature)
    highest = float(activation.max()) if len(activation) else 0.0
    return {
        "feature_index": number,
        **{name: [] for name in _UNKNOWN},
        "neg_str": known.bottom,
        "neg_values": known.bottom_logits,
        "pos_str": known.top,
        "pos_values": known.top_logits,
        "frac_nonzero": len(activation) / max(source.n_tokens, 1),
        "freq_hist_data_bar_values": middles,
        "freq_hist_data_bar_heights": heights,
        "n_prompts_total": source.corpus_row["n_contexts"],
        "n_tokens_in_prompt": source.corpus_row["context_length"],
        "dataset": source.corpus,
        "activations": [_activation(e, highest) for e in shown.examples],
    }


def _activation(example: Example, highest: float) -> dict[str, Any]:
    return {
        # SAEDashboard's marks of the strongest: no interval, but all up to the highest.
        "bin_min": -1.0,
        "bin_max": highest,
        "bin_contains": -1.0,
        "tokens": example.tokens,
        "values": example.values.tolist(),
        "qualifying_token_index": example.peak,
    }


def histogram(values: npt.NDArray[np.float32], n: int) -> tuple[list[int], list[float]]:
    """Return counts of `n` equal bins from the lowest to the highest value, and their middles."""
    if not len(values):
        return [], []
    wide = values.astype(np.float64)
    heights, edges = np.histogram(wide, n, (wide.min(), wide.max()))
    return heights.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()
