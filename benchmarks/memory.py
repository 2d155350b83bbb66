"""Peak memory of an ingest of a corpus and of one ten times as large.

    make bench-memory         two coders and a dense site of the tiny model, each in a process

A corpus is the standard library's source, the larger one ten copies of it under other names.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from record import Measure, write_results

import scopelake
from scopelake import tiny

N_BYTES, FACTOR, REPEATS = 200_000, 10, 3

INGEST = """
import json, sys
from record import peak_mib
from scopelake import cli, tiny
coders = tiny.coders_path()
status = cli.main([
    "ingest", sys.argv[1], "text", "--model", tiny.MODEL_NAME, "--device", "cpu",
    "--dense", "resid_post/3", "--sae", f"{coders}/resid_post_all/layer_3*",
    "--sae", f"{coders}/mlp_out_all/*",
])
print(json.dumps({"peak": peak_mib(), "status": status}))
"""


def build(folder: Path, copies: int) -> Path:
    """Make a lake with a corpus of so many copies; return its folder."""
    files, n_bytes = [], 0
    for path in tiny.stdlib_files(held_out=True):
        text = path.read_text(encoding="utf-8")
        if n_bytes < N_BYTES:
            n_bytes += len(text)
            for copy in range(copies):
                files.append(folder / f"{copy}-{path.parent.name}-{path.name}.txt")
                files[-1].write_text(f"# copy {copy}\n{text}", encoding="utf-8")
    lake = scopelake.create(folder / f"lake-{copies}")
    lake.add_corpus("text", files, tokenizer=tiny.MODEL_NAME, context_length=128, shard_contexts=64)
    return lake.path


def main() -> int:
    """Measure and write the CSV."""
    peaks: dict[int, list[float]] = {1: [], FACTOR: []}
    tokens = {}
    for _ in range(REPEATS):
        for copies in (1, FACTOR):
            folder = Path(tempfile.mkdtemp())
            try:
                path = build(folder, copies)
                done = subprocess.run(
                    [sys.executable, "-c", INGEST, str(path)], check=True, capture_output=True,
                    text=True,
                )  # fmt: skip
                found = json.loads(done.stdout.splitlines()[-1])
                if found["status"]:
                    raise SystemExit(done.stderr)
                peaks[copies].append(found["peak"])
                corpora = scopelake.open(path).sql("SELECT n_tokens FROM corpora")
                tokens[copies] = corpora["n_tokens"][0].as_py()
            finally:
                shutil.rmtree(folder)
    ratios = tuple(b / a for a, b in zip(peaks[1], peaks[FACTOR], strict=True))
    measures = [
        Measure(f"peak of {tokens[1]:,} tokens", tuple(peaks[1]), "MiB"),
        Measure(f"peak of {tokens[FACTOR]:,} tokens", tuple(peaks[FACTOR]), "MiB"),
        Measure("ratio", ratios, ""),
    ]
    write_results("memory", measures, "2 coders and a dense site, shards of 64 contexts of 128")
    return 0


if __name__ == "__main__":
    sys.exit(main())
