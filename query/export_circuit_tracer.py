"""Feature files as circuit-tracer's page reads them.

Of all features, ``features/layer_<n>.bin`` and ``features/index.json.gz``: the layout that the page
reads from a repository on the hub, by ranges of bytes. The index has, by layer, the file's name and
where each feature begins; there lies the length (uint32, little endian) and so many bytes of JSON,
zlib-compressed (circuit_tracer/frontend/assets, init-feature-examples.js and util.js). Of chosen
features, one JSON file each, named by Cantor's pairing of layer and feature, as the page asks a
local server for them. The JSON is circuit-tracer 0.5.0's `feature_models.Model`.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from scopelake.query.export_examples import Example, ExampleList, Shown, examples, left_out
from scopelake.query.export_neuronpedia import histogram
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import ExportOptions, Progress, Written

_BINS: Final = 40
_SHOW_EVERY: Final = 64

_PACKED: Final = """
import gzip, json, struct, zlib

index = json.loads(gzip.open("features/index.json.gz").read())["{layer}"]
feature = {feature}
with open(f"features/{{index['filename']}}", "rb") as file:
    file.seek(index["offsets"][feature])
    (length,) = struct.unpack("<I", file.read(4))
    shown = json.loads(zlib.decompress(file.read(length)))
"""
_SINGLE: Final = """
from circuit_tracer.frontend.feature_models import Model

layer, feature = {layer}, {feature}
name = (layer + feature) * (layer + feature + 1) // 2 + feature
shown = Model.model_validate_json(open(f"features/{{name}}.json").read())
"""


def pairing(layer: int, feature: int) -> int:
    """Return Cantor's pairing, by which circuit-tracer names a feature of a layer."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


class CircuitTracerExporter:
    """Writes ``features/`` and ``examples.parquet``."""

    name = "circuit-tracer"
    about = "Feature files for circuit-tracer's page (circuit-tracer 0.5.0)"
    takes = frozenset({"k", "window"})

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder; see `Exporter`."""
        out = folder / "features"
        out.mkdir()
        n = len(source.features)
        with ExampleList(folder / "examples.parquet") as listed, ExitStack() as stack:
            packed = stack.enter_context(_Packed(source, out)) if source.is_all else None
            put: Callable[[int, dict[str, Any]], None] = (
                _Single(source, out).put if packed is None else packed.put
            )
            for done, shown in enumerate(examples(source, options), 1):
                put(shown.feature, _model(source, shown))
                listed.add(shown)
                if done % _SHOW_EVERY == 0 or done == n:
                    progress("features", done, n)
        layer, feature = source.place(int(source.features[0]))
        usage = (_PACKED if source.is_all else _SINGLE).format(layer=layer, feature=feature)
        said = [
            *left_out(source, listed, options),
            "The SAE's digest, the model, and logits of promoted tokens: transcoder_id is the "
            "SAE's name, top_logits are tokens.",
        ]
        return Written(tuple(said), usage, n_firings=listed.n_firings)


class _Single:
    """A file for each feature."""

    def __init__(self, source: ExportSource, out: Path) -> None:
        self._source, self._out = source, out

    def put(self, feature: int, model: dict[str, Any]) -> None:
        path = self._out / f"{pairing(*self._source.place(feature))}.json"
        path.write_bytes(_json(model))


class _Packed:
    """A file for each layer, and the index of all."""

    def __init__(self, source: ExportSource, out: Path) -> None:
        self._source, self._out = source, out
        self._files: dict[int, BinaryIO] = {}
        self._offsets: dict[int, list[int]] = {}

    def __enter__(self) -> _Packed:
        for layer in dict.fromkeys(self._source.place(int(f))[0] for f in self._source.features):
            self._files[layer] = (self._out / f"layer_{layer}.bin").open("xb")
            self._offsets[layer] = [0]
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
        index = {
            str(layer): {"filename": f"layer_{layer}.bin", "offsets": offsets}
            for layer, offsets in self._offsets.items()
        }
        (self._out / "index.json.gz").write_bytes(gzip.compress(_json(index), mtime=0))

    def put(self, feature: int, model: dict[str, Any]) -> None:
        layer, _ = self._source.place(feature)
        body = zlib.compress(_json(model))
        self._files[layer].write(struct.pack("<I", len(body)) + body)
        self._offsets[layer].append(self._offsets[layer][-1] + 4 + len(body))


def _model(source: ExportSource, shown: Shown) -> dict[str, Any]:
    values = shown.firings.activation
    known = source.logits(shown.feature)
    some = len(values) > 0
    wide = values.astype(np.float64)
    percentiles = np.percentile(wide, np.arange(1, 101)).tolist() if some else []
    return {
        "transcoder_id": source.sae.name,
        "index": source.place(shown.feature)[1],
        "examples_quantiles": [
            {"quantile_name": "Top", "examples": [_example(e) for e in shown.examples]}
        ],
        "top_logits": known.top,
        "bottom_logits": known.bottom,
        "act_min": float(values.min()) if some else 0.0,
        "act_max": float(values.max()) if some else 0.0,
        "quantile_values": percentiles,
        "histogram": [float(height) for height in histogram(values, _BINS)[0]],
        "activation_frequency": len(values) / max(source.n_tokens, 1),
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "tokens_acts_list": example.values.tolist(),
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
        "tokens": example.tokens,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
