"""Import of published examples at their real size: seconds, memory, bytes.

    make bench-examples

The file is generated: the shape of Gemma Scope 2's (16,384 features, 1,000 firings each, a corpus
of 236,963 contexts of 512 tokens), random firings, tokens of the tiny tokenizer. Synthetic.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Measure, peak_mib, write_results
from safetensors.numpy import save_file

import scopelake
from scopelake import tiny
from scopelake.named import load_tokenizer

FOLDER = "gemma-scope-2-4b-it/resid_post/layer_9_width_16k_l0_medium"


def write_file(folder: Path, n_features: int, n_contexts: int, length: int, depth: int) -> int:
    """Write an examples file of that shape; return its bytes."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(110, 4096, (n_contexts, length), dtype=np.int32)
    tokens[:, 0] = 2
    activations = generator.gamma(2.0, 300.0, (n_features, depth)).astype(np.float32)
    tensors = {
        "tokens": tokens,
        "activations": -np.sort(-activations, axis=1),
        "seq_ids": generator.integers(0, n_contexts, (n_features, depth)),
        "positions": generator.integers(0, length, (n_features, depth), dtype=np.int32),
        "logit_effects": activations,
        "feature_frequencies": generator.random(n_features),
        "top_tokens": generator.integers(0, 4096, (n_features, 10), dtype=np.int32),
        "bottom_tokens": generator.integers(0, 4096, (n_features, 10), dtype=np.int32),
        "top_logits": generator.random((n_features, 10), dtype=np.float32),
        "bottom_logits": generator.random((n_features, 10), dtype=np.float32),
    }
    # An address occurs once: a firing that repeats one becomes none.
    key = tensors["seq_ids"] * length + tensors["positions"]
    order = np.argsort(key, axis=1, kind="stable")
    ordered = np.take_along_axis(key, order, axis=1)
    repeated = np.zeros_like(ordered, dtype=bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    mask = np.zeros_like(repeated)
    np.put_along_axis(mask, order, repeated, axis=1)
    tensors["activations"][mask] = 0.0
    folder.mkdir(parents=True)
    save_file(tensors, folder / "examples.safetensors")
    return (folder / "examples.safetensors").stat().st_size


def folder_bytes(root: Path) -> int:
    return sum(f.stat().st_size for f in root.rglob("*.parquet"))


def generate(folder: Path, shape: tuple[int, int, int, int]) -> int:
    """Write the file from a process of its own, whose memory is not ours."""
    call = f"examples.write_file(pathlib.Path({str(folder)!r}), *{shape})"
    code = f"import examples, pathlib; print({call})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    return int(done.stdout)


def measure(root: Path, shape: tuple[int, int, int, int]) -> list[Measure]:
    """Import once, then ask for 50 random features."""
    file_bytes = generate(root / FOLDER, shape)
    lake = scopelake.create(root / "lake")
    load_tokenizer(tiny.MODEL_NAME)
    before, start = peak_mib(), time.perf_counter()
    (done,) = lake.import_examples([root / FOLDER], tokenizer=tiny.MODEL_NAME)
    seconds, peak = time.perf_counter() - start, peak_mib()
    times = []
    for feature in np.random.default_rng(1).integers(0, shape[0], 50):
        start = time.perf_counter()
        lake.top_contexts(int(feature), layer=9)
        times.append(1000 * (time.perf_counter() - start))
    return [
        Measure("file", (file_bytes / 1e6,), "MB"),
        Measure("examples", (done.n_firings,), "firings"),
        Measure("import", (seconds,), "s"),
        Measure("peak memory before", (before,), "MiB"),
        Measure("peak memory", (peak,), "MiB"),
        Measure("lake", (folder_bytes(root / "lake") / 1e6,), "MB"),
        Measure("top 20 contexts", tuple(times), "ms"),
    ]


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of features and contexts")
    scale = parser.parse_args().scale
    shape = (round(16_384 * scale), round(236_963 * scale), 512, 1000)
    root = Path(tempfile.mkdtemp())
    try:
        config = f"{shape[0]} features, {shape[3]} firings each, {shape[1]} contexts of {shape[2]}"
        write_results("examples", measure(root, shape), f"synthetic file: {config}")
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
