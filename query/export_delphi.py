"""delphi's latent cache: splits of features as safetensors, with the tokens in each.

As delphi 0.1.3 writes it (`LatentCache.save_splits`, `save_config`) and `LatentDataset` reads it.
A split holds ``locations`` (row, position, feature from the split's first), ``activations`` and
``tokens`` (rows by positions); its name says which features it has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import InvalidArgumentError
from scopelake.names import slug
from scopelake.query.export_source import Chunk, ExportSource, Ints
from scopelake.query.exporter import ExportOptions, Progress, Written
from scopelake.query.safetensors_parts import Part, append, cast_part, write_safetensors

_SPLITS: Final = 5
"""delphi's default."""

_PAD: Final = 0
"""Token of what a context is shorter than the longest: Gemma 3's ``<pad>``."""

_HALF: Final = np.finfo(np.float16)
_PARTS: Final = ".parts"
LATENTS: Final = "latents"


@dataclass(frozen=True)
class _Split:
    """Features first to last, both included."""

    first: int
    last: int
    n_firings: int

    @property
    def name(self) -> str:
        return f"{self.first}_{self.last}"


class DelphiExporter:
    """Writes ``latents/<coder>/<first>_<last>.safetensors`` and ``config.json``."""

    name = "delphi"
    about = "A latent cache of delphi (eai-delphi 0.1.3)"
    takes = frozenset({"n_splits"})

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files into an empty folder; see `Exporter`."""
        splits = _splits(source, options.n_splits or _SPLITS)
        module = folder / LATENTS / slug(source.sae.name)
        parts = folder / _PARTS
        module.mkdir(parents=True)
        parts.mkdir()
        tokens, n_padded = _write_tokens(source, parts, folder / "rows.parquet", progress)
        writer = _SplitWriter(source, module, parts, tokens)
        for split, pieces in _by_split(source, splits):
            writer.write(split, pieces)
            progress("features", split.last + 1, source.sae.width)
        shutil.rmtree(parts)
        (module / "config.json").write_text(json.dumps(_config(source, splits, tokens), indent=4))
        facts = {
            "module": module.name,
            "splits": [split.name for split in splits],
            "float32_splits": writer.wide,
            "largest_relative_error": writer.error,
            "n_padded_contexts": n_padded,
        }
        return Written(
            _left_out(source, writer, n_padded, tokens), _usage(module.name), facts=facts
        )


def _splits(source: ExportSource, n: int) -> list[_Split]:
    """Return delphi's own ranges; one without firings joins its neighbor, as delphi needs some."""
    width = source.sae.width
    if n > width:
        raise InvalidArgumentError(
            f"n_splits={n} was asked for; {source.sae.name} has {width} features; give at most as "
            "many"
        )
    if not source.n_firings.any():
        raise InvalidArgumentError(
            f"a delphi cache of {source.sae.name} on corpus {source.corpus!r} was asked for; none "
            "of the features fires there, and a cache cannot be empty; name others"
        )
    edges = np.linspace(0, width, n + 1).astype(np.int64).tolist()
    held = np.concatenate([[0], np.cumsum(source.n_firings)])
    splits: list[_Split] = []
    first = 0
    for stop in edges[1:]:
        firings = int(held[stop] - held[first])
        if firings:
            splits.append(_Split(first, stop - 1, firings))
            first = stop
    if first < width:  # those after the last firing
        last = splits.pop()
        splits.append(_Split(last.first, width - 1, last.n_firings))
    return splits


def _by_split(
    source: ExportSource, splits: list[_Split]
) -> Iterator[tuple[_Split, Iterator[Chunk]]]:
    """Yield each split with its firings, which have to be read before the next one's."""
    chunks = source.chunks()
    chunk = next(chunks)

    def pieces(split: _Split) -> Iterator[Chunk]:
        nonlocal chunk
        while True:
            low, high = np.searchsorted(chunk.feature, [split.first, split.last + 1])
            if low < high:
                yield chunk.take(slice(int(low), int(high)), chunk.features)
            if len(chunk.features) and chunk.features[-1] > split.last:
                return
            following = next(chunks, None)
            if following is None:
                return
            chunk = following

    for split in splits:
        yield split, pieces(split)


class _SplitWriter:
    """Puts the parts of a split on disk, and then together."""

    def __init__(self, source: ExportSource, module: Path, parts: Path, tokens: Part) -> None:
        self._source, self._module, self._parts, self._tokens = source, module, parts, tokens
        digest = source.sae_row["digest"] or ""
        self._metadata = {
            "sae": source.sae.name, "sae_digest": digest, "corpus": source.corpus,
        }  # fmt: skip
        self.wide: list[str] = []
        """Splits whose activations are float32."""
        self.has_half = False
        self.error = 0.0
        """Largest relative difference of an activation."""

    def write(self, split: _Split, pieces: Iterator[Chunk]) -> None:
        dtype = self._location_type(split)
        paths = [self._parts / f"{split.name}.{what}" for what in ("locations", "activations")]
        low, high = np.inf, 0.0
        for piece in pieces:
            rows = np.searchsorted(self._source.numbers, piece.context)
            where = np.stack([rows, piece.position, piece.feature - split.first], axis=1)
            append(paths[0], where.astype(dtype))
            append(paths[1], piece.activation)
            low = min(low, float(piece.activation.min()))
            high = max(high, float(piece.activation.max()))
        n = split.n_firings
        values = Part(paths[1], np.float32, (n,))
        if float(_HALF.smallest_normal) <= low and high <= float(_HALF.max):
            values, error = cast_part(values, np.float16, self._parts / f"{split.name}.half")
            self.has_half, self.error = True, max(self.error, error)
        else:
            self.wide.append(split.name)
        write_safetensors(
            self._module / f"{split.name}.safetensors",
            {"locations": Part(paths[0], dtype, (n, 3)), "activations": values,
             "tokens": self._tokens},
            self._metadata,
        )  # fmt: skip
        for path in {*paths, values.path}:
            path.unlink()

    def _location_type(self, split: _Split) -> type[np.uint16] | type[np.uint32]:
        n_rows, length = self._tokens.shape
        highest = max(split.last - split.first, n_rows - 1, length - 1)
        return np.uint16 if highest < 1 << 16 else np.uint32


def _write_tokens(
    source: ExportSource, parts: Path, listing: Path, progress: Progress
) -> tuple[Part, int]:
    """Write the tokens of all contexts, padded at the end, and which row is which context.

    Returns:
        The part, and how many contexts were padded.
    """
    numbers = source.numbers
    shape = (len(numbers), int(source.corpus_row["context_length"]))
    path = parts / "tokens"
    tokens: Any = np.memmap(path, np.int32, "w+", shape=shape)
    lengths = np.zeros(len(numbers), np.int32)
    done = 0
    schema = pa.schema(
        [("row", pa.int64()), ("context", pa.int64()), ("document", pa.string()),
         ("n_tokens", pa.int32())]
    )  # fmt: skip
    with pq.ParquetWriter(listing, schema, compression="zstd") as rows_file:
        for rows in source.contexts(["context", "document", "token_ids"]):
            at = np.searchsorted(numbers, rows["context"].to_numpy())
            tokens[at], lengths[at] = _padded(rows["token_ids"], shape[1])
            rows_file.write_table(_listing(rows, at, lengths[at], schema))
            done += rows.num_rows
            progress("contexts", done, len(numbers))
    tokens.flush()
    del tokens
    return Part(path, np.int32, shape), int(np.count_nonzero(lengths < shape[1]))


def _padded(
    lists: pa.ChunkedArray, length: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return lists of token ids as rows of one length, and the length of each."""
    ids = lists.combine_chunks()
    n = np.diff(ids.offsets.to_numpy()).astype(np.int32)
    rows = np.full((len(n), length), _PAD, np.int32)
    rows[np.arange(length)[None] < n[:, None]] = ids.flatten().to_numpy()
    return rows, n


def _listing(
    rows: pa.Table, at: Ints, lengths: npt.NDArray[np.int32], schema: pa.Schema
) -> pa.Table:
    columns = [pa.array(at), rows["context"], rows["document"], pa.array(lengths)]
    return pa.table(columns, names=schema.names).cast(schema)


def _config(source: ExportSource, splits: list[_Split], tokens: Part) -> dict[str, Any]:
    """Return delphi's CacheConfig, the name of the model, and where it is from."""
    corpus = source.corpus_row
    n_rows, length = tokens.shape
    return {
        "dataset_repo": corpus["source"],
        "dataset_split": "",
        "dataset_name": source.corpus,
        "dataset_column": "text",
        "batch_size": corpus["shard_contexts"],
        "cache_ctx_len": length,
        "n_tokens": n_rows * length,
        "n_splits": len(splits),
        "model_name": source.model or corpus["tokenizer"],
        "scopelake": source.facts(),
    }


def _left_out(
    source: ExportSource, writer: _SplitWriter, n_padded: int, tokens: Part
) -> tuple[str, ...]:
    n_rows, length = tokens.shape
    said = [
        "The text of tokens: delphi decodes their ids with the model's tokenizer.",
        "Documents, roles, turns, kinds, metadata and labels; rows.parquet says which context of "
        "the lake each row is.",
    ]
    if n_on_bos := int(source.n_on_bos.sum()):
        said.append(f"Which firings are on BOS: {n_on_bos:,} of those in the cache are.")
    if writer.has_half:
        said.append(
            "Activations are float16: the largest relative difference from the lake's is "
            f"{writer.error:.3g}."
        )
    if writer.wide:
        said.append(
            f"Activations of {', '.join(writer.wide)} are float32, as some of them are outside "
            "float16's range."
        )
    if n_padded:
        said.append(
            f"{n_padded:,} of {n_rows:,} contexts are shorter than {length} tokens; they are "
            f"padded with token {_PAD}, which delphi counts as tokens."
        )
    if not source.is_all:
        said.append("Features that were not asked for: to delphi they never fire.")
    return tuple(said)


def _usage(module: str) -> str:
    return f"""
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset

data = LatentDataset(
    "{LATENTS}", SamplerConfig(), ConstructorConfig(), modules=["{module}"]
)  # ConstructorConfig's example_ctx_len has to divide cache_ctx_len
"""
