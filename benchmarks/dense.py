"""Dense activations: write rate, random reads and bytes by codec, on the tiny model's own.

    make bench-dense          residual stream of layer 3 on the demo's text

Every codec's turn comes in each repeat; writes go through the store's own shard writer, with its
checksum and fsync; reads are of 64 tokens of one context at random, in one thread, from the page
cache.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import torch
from record import Measure, write_results
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from scopelake import tiny
from scopelake.ingest.capture import capture
from scopelake.ingest.model import load_model
from scopelake.ingest.tokens import Tokenizer
from scopelake.named import model_files
from scopelake.names import SiteLayer
from scopelake.store import dense
from scopelake.store.lake_store import LakeStore
from scopelake.store.root import Root

N_CONTEXTS, LENGTH, SHARDS, REPEATS, READS = 256, 1_024, 4, 5, 200
SITE: Final = SiteLayer("resid_post", 3)

CODECS: Final[dict[str, list[Any]]] = {
    "none": [Crc32cCodec()],
    "zstd 1": [ZstdCodec(level=1), Crc32cCodec()],
    "zstd 3": [ZstdCodec(level=3), Crc32cCodec()],
    "blosc lz4 shuffle": [BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="shuffle"),
                          Crc32cCodec()],
    "blosc zstd 1 shuffle": [BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="shuffle"),
                             Crc32cCodec()],
}  # fmt: skip


def real_activations() -> np.ndarray:
    """bfloat16 [N_CONTEXTS, LENGTH, 128], of the tiny model on Python source."""
    model = load_model(model_files(tiny.MODEL_NAME), device="cpu")
    tokenizer = Tokenizer.load(tiny.model_path(), tiny.MODEL_NAME)
    text = "\n".join(p.read_text(encoding="utf-8") for p in tiny.stdlib_files(held_out=True)[:40])
    (encoded,) = tokenizer.encode_texts([text])
    ids = encoded.token_ids
    rows = np.resize(ids, (N_CONTEXTS, LENGTH))
    found = np.empty((N_CONTEXTS, LENGTH, model.d_model), dtype=ml_dtypes.bfloat16)
    for start in range(0, N_CONTEXTS, 16):
        x = capture(model, list(rows[start : start + 16]), [SITE])[SITE]
        bits = x.to(torch.bfloat16).view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        found[start : start + 16] = bits.reshape(16, LENGTH, -1)
    return found


def write(root: Root, name: str, values: np.ndarray) -> tuple[float, int]:
    """Write SHARDS shards; return seconds and bytes."""
    sizes = (SHARDS * N_CONTEXTS, *values.shape[1:])
    dense.ensure_array(root, "c", name, "resid_post", 3, *sizes, N_CONTEXTS)
    start = time.perf_counter()
    n_bytes = 0
    for shard in range(SHARDS):
        receipt = dense.write_shard(
            root, "c", name, "resid_post", 3, shard * N_CONTEXTS, values, shard=shard, run="r"
        )
        n_bytes += receipt.n_bytes
    return time.perf_counter() - start, n_bytes


def read(root: Root, name: str, rng: np.random.Generator) -> list[float]:
    """Return milliseconds of each read of 64 tokens."""
    array = dense.open_array(root, "c", name, "resid_post", 3)
    taken = []
    for _ in range(READS):
        context, position = rng.integers(array.shape[0]), rng.integers(LENGTH - 64)
        start = time.perf_counter()
        _ = array[int(context), int(position) : int(position) + 64]
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def main() -> int:
    """Measure and write the CSV."""
    values = real_activations()
    plain = values.nbytes * SHARDS
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in CODECS}
    reads: dict[str, list[float]] = {name: [] for name in CODECS}
    sizes: dict[str, float] = {}
    own = dense.COMPRESSORS
    for repeat in range(REPEATS):
        folder = Path(tempfile.mkdtemp())
        try:
            root = LakeStore.create(folder / "lake").root
            for name, codecs in CODECS.items():
                dense.COMPRESSORS = codecs
                seconds, n_bytes = write(root, f"{name} {repeat}", values)
                rates[name].append(plain / seconds / 1e6)
                sizes[name] = n_bytes / plain
                reads[name] += read(root, f"{name} {repeat}", rng)
        finally:
            dense.COMPRESSORS = own
            shutil.rmtree(folder)
    measures = []
    for name in CODECS:
        measures += [
            Measure(f"{name}: write", tuple(rates[name]), "MB/s"),
            Measure(f"{name}: 64 tokens at random", tuple(reads[name]), "ms"),
            Measure(f"{name}: size", (sizes[name],), "of bfloat16"),
        ]
    config = f"shards of {list(values.shape)} bfloat16, a chunk a context, {SHARDS} shards"
    write_results("dense", measures, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
