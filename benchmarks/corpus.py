"""Tokens a second of corpus preparation on one core, against the bare tokenizer on the same text.

The text is the standard library's source: as whole files, and as records of
400 characters, and of 170, some 50 tokens. The
process keeps to one core, and its processor time counts. Bar: at least 1 M tokens/s, or what the
tokenizer leaves of it: then the ratio to the bare tokenizer tells.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
from record import Measure, write_results

from scopelake import tiny
from scopelake.ingest.corpus import CorpusConfig, add_corpus
from scopelake.ingest.sources import CorpusSource
from scopelake.ingest.windows import Cutting
from scopelake.named import load_tokenizer
from scopelake.store.lake_store import LakeStore

REPEATS, CONTEXT = 5, 1024
RECORD_CHARACTERS, SHORT_CHARACTERS = 400, 170


def seconds(act: Callable[[], object]) -> float:
    # Of the processor, so that what else runs on the machine does not count, nor waiting for disks.
    start = time.process_time()
    act()
    return time.process_time() - start


def read_texts(n_characters: int) -> list[str]:
    texts, total = [], 0
    for path in tiny.stdlib_files(held_out=False):
        texts.append(path.read_text(encoding="utf-8"))
        total += len(texts[-1])
        if total >= n_characters:
            break
    return texts


def write_records(path: Path, texts: list[str]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
    return path


def measure(name: str, texts: list[str], folder: Path, **cutting: Any) -> list[Measure]:  # noqa: ANN401
    source = CorpusSource.find(write_records(folder / f"{name}.jsonl", texts))
    tokenizer = load_tokenizer(tiny.MODEL_NAME)
    config = CorpusConfig("text", Cutting(CONTEXT, **cutting))
    lakes = [LakeStore.create(folder / f"{name}-{i}") for i in range(REPEATS + 1)]
    # Lakes and the tokenizer are there before: what is measured is what grows with the corpus.
    made = add_corpus(lakes.pop(), config, source, tokenizer)
    core = tokenizer._core
    acts = {
        "preparation": lambda: add_corpus(lakes.pop(), config, source, tokenizer),
        "bare tokenizer": partial(core.encode_batch_fast, texts, add_special_tokens=False),
        "bare tokenizer, offsets": partial(core.encode_batch, texts, add_special_tokens=False),
    }
    # In turn, so that what else the machine does falls on all alike.
    rounds = [[seconds(act) for act in acts.values()] for _ in range(REPEATS)]
    ours, bare, offsets = np.array(rounds).T
    n = made.n_tokens
    return [
        Measure(f"{name}: tokens", (float(n),), "tokens"),
        Measure(f"{name}: contexts", (float(made.n_contexts),), "contexts"),
        *(
            Measure(f"{name}: {what}", tuple(n / took), "tokens/s")
            for what, took in zip(acts, (ours, bare, offsets), strict=True)
        ),
        Measure(f"{name}: time / bare tokenizer", tuple(ours / bare), "ratio"),
        Measure(f"{name}: time / bare tokenizer, offsets", tuple(ours / offsets), "ratio"),
        Measure(f"{name}: besides the tokenizer", tuple((ours - bare) / n * 1e9), "ns/token"),
    ]  # fmt: skip


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = read_texts(8_000_000)
    whole = "".join(texts)
    records, short = (
        [whole[i : i + n] for i in range(0, len(whole), n)]
        for n in (RECORD_CHARACTERS, SHORT_CHARACTERS)
    )
    with tempfile.TemporaryDirectory() as place:
        measures = measure("files", texts, Path(place))
        measures += measure("records", records, Path(place))
        measures += measure("packed records", records, Path(place), packing=True)
        measures += measure("short records", short, Path(place))
    write_results(
        "corpus", measures,
        f"one core; {len(texts)} files of {len(whole):,} characters, and records of "
        f"{RECORD_CHARACTERS} and {SHORT_CHARACTERS}; context_length={CONTEXT}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
