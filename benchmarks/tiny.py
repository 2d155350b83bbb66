"""The demo's job, measured: ingest against the bare forward and encode, bytes, query times.

The baseline does what a notebook would: the same forward passes with hooks, then a dense
pre-activation, a comparison and `nonzero` for each coder, and keeps nothing. Baseline and ingest
alternate, so that a noisy machine disturbs both.

    python benchmarks/tiny.py [--repeats 3] [--queries 200]
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import Measure, write_results

import scopelake
from scopelake import tiny
from scopelake.demo import SHOWN_SAE, add_demo_corpora
from scopelake.ingest.capture import capture, pad, run_text
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.find_coders import find_coders
from scopelake.ingest.model import find_model, load_model
from scopelake.ingest.stages import device_idle
from scopelake.kernels.reference import encode as dense_encode
from scopelake.lake import Lake

CORPUS = "stdlib"
DENSE = [("resid_post", 3)]
SHARD = 256
BATCH_TOKENS = 16384


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Baseline:
    """Forward, capture and dense encode of every coder; nothing is stored."""

    def __init__(self, lake: Lake) -> None:
        files = find_model(tiny.model_path())
        self.model = load_model(files, device="cpu")
        self.coders = find_coders([tiny.coders_path()])
        self.weights = {c.name: load_encoders(c, self.model.device) for c in self.coders}
        rows = lake.sql(f"SELECT token_ids FROM contexts WHERE corpus = '{CORPUS}'")
        self.contexts = [np.array(ids, dtype=np.int32) for ids in rows["token_ids"].to_pylist()]

    def __call__(self) -> None:
        sites = sorted({s for c in self.coders for s in c.sites}, key=str)
        for start in range(0, len(self.contexts), SHARD):
            shard = self.contexts[start : start + SHARD]
            for group in batches([len(ids) for ids in shard], BATCH_TOKENS):
                found = capture(self.model, [shard[i] for i in group], sites)
                for coder in self.coders:
                    dense_encode(found[coder.sites[0]], self.weights[coder.name][0])


class Plain(Baseline):
    """The model's own forward over the same batches, to its last layer; nothing is captured."""

    def __call__(self) -> None:
        for start in range(0, len(self.contexts), SHARD):
            shard = self.contexts[start : start + SHARD]
            for group in batches([len(ids) for ids in shard], BATCH_TOKENS):
                batch = pad([shard[i] for i in group], "right", self.model.device)
                with torch.inference_mode():
                    run_text(self.model, batch)


def ingest_times(folder: Path, repeats: int) -> tuple[list[Measure], Lake]:
    """Tokens a second of ingest and of the baseline, and the last lake built."""
    ours: list[float] = []
    plain: list[float] = []
    bare: list[float] = []
    stages: dict[str, list[float]] = {}
    prepare: list[float] = []
    lake, tokens = scopelake.create(folder / "lake"), 0
    for repeat in range(repeats):
        lake = scopelake.create(folder / f"lake-{repeat}")
        prepare.append(seconds(lambda lake=lake: add_demo_corpora(lake)))
        baseline = Baseline(lake)
        tokens = sum(map(len, baseline.contexts))
        bare.append(seconds(baseline))
        plain.append(seconds(Plain(lake)))
        started = time.perf_counter()
        done = lake.ingest(
            CORPUS, model=tiny.MODEL_NAME, saes=[tiny.coders_path()], dense=DENSE, device="cpu"
        )
        ours.append(time.perf_counter() - started)
        for stage, spent in done.stages.items():
            stages.setdefault(stage, []).append(100 * spent / done.seconds)
        stages.setdefault("device idle", []).append(100 * device_idle(done.stages, done.seconds))
    ratios = tuple(a / b for a, b in zip(ours, bare, strict=True))
    over_plain = tuple(a / b for a, b in zip(ours, plain, strict=True))
    return [
        Measure("corpus preparation, both corpora", tuple(prepare), "s"),
        Measure("bare forward and dense encode", tuple(tokens / s for s in bare), "tokens/s"),
        Measure("ingest, everything stored", tuple(tokens / s for s in ours), "tokens/s"),
        Measure("plain forward, nothing captured", tuple(tokens / s for s in plain), "tokens/s"),
        Measure("ingest time / bare time", ratios, "ratio"),
        Measure("ingest time / plain forward", over_plain, "ratio"),
        *(Measure(f"stage: {name}", tuple(v), "% of the time") for name, v in stages.items()),
    ], lake


def stored(lake: Lake) -> list[Measure]:
    """Bytes of the firings of one lake."""
    info = lake.info()
    each = {name: (value or 0.0,) for name, value in info.bytes_a_firing().items()}
    dense = float(info.dense_bytes) / sum(c.tokens for c in info.corpora if c.corpus == CORPUS)
    return [
        Measure("firings", (float(info.firings),), "firings"),
        Measure("token-major (codes)", each["codes"], "B/firing"),
        Measure("feature-major (postings)", each["postings"], "B/firing"),
        Measure("both orders", each["both"], "B/firing"),
        Measure("peaks", each["peaks"], "B/firing"),
        Measure("dense resid_post/3", (dense,), "B/token"),
    ]


def query_times(lake: Lake, queries: int) -> list[Measure]:
    """Latencies of the common questions, warm, and of a first answer in a new process."""
    rng = random.Random(5)
    found = lake.sql(
        "SELECT feature FROM features WHERE firings > 0 AND sae LIKE $1", ["%" + SHOWN_SAE]
    )["feature"].to_pylist()
    features = [rng.choice(found) for _ in range(queries)]
    contexts = [rng.randrange(1000) for _ in range(queries)]
    lake.top_contexts(features[0], sae=SHOWN_SAE)
    top = tuple(
        1e3 * seconds(lambda f=f: lake.top_contexts(f, sae=SHOWN_SAE, k=20)) for f in features
    )
    here = tuple(
        1e3 * seconds(lambda c=c: lake.features_at(c, 10, corpus=CORPUS, k=5)) for c in contexts
    )
    program = (
        "import time; t = time.perf_counter(); import scopelake; "
        f"lake = scopelake.open({str(lake.path)!r}); "
        f"lake.top_contexts({features[0]}, sae={SHOWN_SAE!r}); print(time.perf_counter() - t)"
    )
    first = tuple(
        float(subprocess.run([sys.executable, "-P", "-c", program], check=True,
                             capture_output=True, text=True).stdout)
        for _ in range(7)
    )  # fmt: skip
    return [
        Measure("top 20 contexts with windows, warm", top, "ms"),
        Measure("features at a token, 14 coders, warm", here, "ms"),
        Measure("new process: import, open, first answer", first, "s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measures, lake = ingest_times(Path(folder), args.repeats)
        measures += stored(lake)
        measures += query_times(lake, args.queries)
        contexts, tokens = lake.sql(
            f"SELECT n_contexts, n_tokens FROM corpora WHERE corpus = '{CORPUS}'"
        ).to_pylist()[0].values()  # fmt: skip
    config = (
        f"tiny model, 14 coders, {contexts} contexts and {tokens} tokens, float32, 10 bits, "
        f"{torch.get_num_threads()} threads"
    )
    write_results("tiny", measures, config)


if __name__ == "__main__":
    main()
