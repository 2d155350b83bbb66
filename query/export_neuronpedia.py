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

batch = NeuronpediaDashboardBatch(**json.load(open("batch-0.json")))
"""


class NeuronpediaExporter:
    """Writes ``batch-<n>.json``, ``skipped_indexes.json`` and ``examples.parquet``."""

    name = "neuronpedia"
    about = "Feature dashboards for Neuronpedia (SAEDashboard 0.8.0)"
    takes = frozenset({"k", "window"})

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder; see `Exporter`."""
        n = len(source.features)
        waiting: list[dict[str, Any]] = []
        done = 0
        with ExampleList(folder / "examples.parquet") as listed:
            for shown in examples(source, options):
                waiting.append(_feature(source, shown))
                listed.add(shown)
                done += 1
                if len(waiting) == _BATCH or done == n:
                    self._write_batch(source, folder, (done - 1) // _BATCH, waiting)
                    waiting = []
                    progress("features", done, n)
        _write_skipped(source, folder)
        said = [
            *left_out(source, listed, options),
            "Neuron alignment, correlated neurons and features, histograms of logits, decoder "
            "weights and vectors: they take weights that a lake does not have; their lists are "
            "empty.",
        ]
        return Written(tuple(said), _USAGE, n_firings=listed.n_firings)

    def _write_batch(
        self, source: ExportSource, folder: Path, number: int, features: list[dict[str, Any]]
    ) -> None:
        batch = {
            "model_id": (source.model or "").rsplit("/", 1)[-1],
            "layer": source.sae.layers[0],
            "sae_set": source.sae.name,
            "sae_id_suffix": None,
            "features": features,
        }
        (folder / f"batch-{number}.json").write_text(
            json.dumps(batch, ensure_ascii=False, allow_nan=False), encoding="utf-8"
        )


def _feature(source: ExportSource, shown: Shown) -> dict[str, Any]:
    activation = shown.firings.activation
    heights, middles = histogram(activation, _BINS)
    known = source.logits(shown.feature)
    highest = float(activation.max()) if len(activation) else 0.0
    return {
        "feature_index": shown.feature,
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


def _write_skipped(source: ExportSource, folder: Path) -> None:
    """Write which features were not asked for, as SAEDashboard's runner does."""
    others = np.setdiff1d(np.arange(source.sae.width), source.features)
    skipped = {
        "model_id": (source.model or "").rsplit("/", 1)[-1],
        "layer": str(source.sae.layers[0]),
        "sae_set": source.sae.name,
        "skipped_indexes": others.tolist(),
    }
    (folder / "skipped_indexes.json").write_text(json.dumps(skipped))
