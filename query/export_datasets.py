"""A folder that ``datasets.load_dataset`` reads: firings, contexts, features and labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.names import KINDS
from scopelake.query.export_source import Chunk, ExportSource
from scopelake.query.exporter import ExportOptions, Progress, Written
from scopelake.store.schema import SCHEMAS, file_schema

_ROW_GROUP: Final = 65_536
_ROWS_PER_FILE: Final = 8_000_000

_FIRINGS: Final = pa.schema(
    [("feature", pa.int32()), ("context", pa.int64()), ("position", pa.int32()),
     ("activation", pa.float32()), ("kind", pa.string())]
)  # fmt: skip
_LABELS: Final = pa.schema([SCHEMAS["labels"].field(n) for n in ("feature", "label", "source")])


class DatasetsExporter:
    """Writes ``<config>/part-<n>.parquet`` of each config; the README is the dataset card."""

    name = "datasets"
    about = "A dataset of firings for Hugging Face's datasets"
    takes: frozenset[str] = frozenset()

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder; see `Exporter`."""
        metadata = {"scopelake": json.dumps(source.facts())}
        n_rows = {
            "contexts": self._contexts(source, folder, metadata, progress),
            "firings": self._firings(source, folder, metadata, progress),
            "features": self._features(source, folder, metadata),
            "labels": self._labels(source, folder, metadata),
        }
        said = [
            "Dense activations, decoders and nearest features.",
            "The token beside each firing: its context is a row of contexts, where token_ids, "
            "roles, turns and kinds are lists by position.",
        ]
        if not n_rows["features"]:
            said.append("Statistics of features: the lake has none of these.")
        if not source.is_all:
            said.append("Firings of features that were not asked for.")
        configs = [name for name, n in n_rows.items() if n]
        return Written(
            tuple(said),
            _usage(configs),
            facts={"rows": n_rows},
            front_matter=_card(source, configs),
        )

    def _firings(
        self, source: ExportSource, folder: Path, metadata: Mapping[str, str], progress: Progress
    ) -> int:
        def tables() -> Iterable[pa.Table]:
            done = 0
            for chunk in source.chunks():
                yield _firing_rows(chunk)
                done += len(chunk.features)
                progress("features", done, len(source.features))

        return _write(folder / "firings", _FIRINGS, tables(), metadata)

    def _contexts(
        self, source: ExportSource, folder: Path, metadata: Mapping[str, str], progress: Progress
    ) -> int:
        def tables() -> Iterable[pa.Table]:
            done = 0
            for rows in source.contexts():
                yield rows
                done += rows.num_rows
                progress("contexts", done, source.corpus_row["n_contexts"])

        return _write(folder / "contexts", file_schema("contexts"), tables(), metadata)

    def _features(self, source: ExportSource, folder: Path, metadata: Mapping[str, str]) -> int:
        schema = file_schema("features")
        return _write(folder / "features", schema, source.statistics(schema.names), metadata)

    def _labels(self, source: ExportSource, folder: Path, metadata: Mapping[str, str]) -> int:
        return _write(folder / "labels", _LABELS, [source.labels()], metadata)


def _firing_rows(chunk: Chunk) -> pa.Table:
    kinds = pa.DictionaryArray.from_arrays(pa.array(chunk.kind), pa.array(KINDS))
    columns = [chunk.feature, chunk.context, chunk.position, chunk.activation]
    return pa.table([*map(pa.array, columns), kinds.cast(pa.string())], schema=_FIRINGS)


def _write(
    folder: Path, schema: pa.Schema, tables: Iterable[pa.Table], metadata: Mapping[str, str]
) -> int:
    """Write tables into files of a few million rows; return how many rows. Of none, no file."""
    total = held = number = 0
    writer: Any = None
    for table in tables:
        if not table.num_rows:
            continue
        if writer is not None and held + table.num_rows > _ROWS_PER_FILE:
            writer.close()
            writer, held, number = None, 0, number + 1
        if writer is None:
            folder.mkdir(exist_ok=True)
            path = folder / f"part-{number:05d}.parquet"
            writer = pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd")
        writer.write_table(table.cast(schema).replace_schema_metadata(metadata), _ROW_GROUP)
        held, total = held + table.num_rows, total + table.num_rows
    if writer is not None:
        writer.close()
    return total


def _usage(configs: list[str]) -> str:
    """Return what loads all configs that are there."""
    loads = [f'{name} = load_dataset(".", "{name}", split="train")' for name in configs]
    return "\n".join(["from datasets import load_dataset", "", *loads])


def _card(source: ExportSource, configs: list[str]) -> str:
    """Return the YAML with which the card begins."""
    lines = ["---", f"pretty_name: {json.dumps(f'Firings of {source.sae.name}')}", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
        lines += ["  default: true"] if name == "firings" else []
    return "\n".join([*lines, "---", "", ""])
