"""Seconds that inspecting a prompt takes beyond the model's own time.

The tiny model, the 14 coders that ship here, a prompt of 64 tokens, a lake with one small corpus to
compare with. The model and the coders are loaded once. The model's own time is the same forward
pass through plain transformers, and for a chat the same greedy generation; the rest is ours:
tokenizing, capturing, encoding, storing, reading, ranking. The first call of a process, with what
it imports, is measured in new processes.

    python benchmarks/inspection.py [--repeats 15]

Beside the wall time stands the processor time of all threads, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from record import Measure, write_results

import scopelake
from scopelake import tiny
from scopelake.inspector import Inspector
from scopelake.lake import Lake

PROMPT = (
    "class Reader:\n    def __init__(self, path, size):\n        self.path = path\n"
    "        self.size = size\n\n    def read(self):\n        with open(self.path) as file:\n"
    "            return file.read(self.size)\n"
)
CHAT = [{"role": "user", "content": "What is a list?"}]
GENERATED, FRESH, CHARACTERS = 16, 5, 200_000


@dataclass(frozen=True)
class Took:
    """What a call took."""

    wall: float
    cpu: float
    """Of all threads."""


def took(act: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def build(folder: Path) -> Lake:
    """Make a lake with a corpus on which all coders are complete."""
    texts, total = [], 0
    for path in tiny.stdlib_files(held_out=False):
        texts.append(path.read_text(encoding="utf-8"))
        total += len(texts[-1])
        if total >= CHARACTERS:
            break
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    lake = scopelake.create(folder / "lake")
    lake.add_corpus("code", folder / "a.jsonl", tokenizer=tiny.MODEL_NAME, context_length=512)
    lake.ingest("code", model=tiny.MODEL_NAME, saes=[tiny.coders_path()], device="cpu")
    return lake


def open_inspector(lake: Lake) -> Inspector:
    return lake.inspector(model=tiny.MODEL_NAME, saes=[tiny.coders_path()], device="cpu")


class Own:
    """What the model itself takes of a prompt."""

    def __init__(self, inspector: Inspector) -> None:
        reader = inspector._prompts
        self.module, self.tokenizer = reader.model.module, reader.tokenizer
        tokens = self.tokenizer.encode_texts([PROMPT])[0].token_ids.tolist()
        self.ids = torch.tensor([[self.tokenizer.bos_id, *tokens]])

    def forward(self) -> None:
        with torch.inference_mode():
            self.module(input_ids=self.ids, use_cache=False)

    def generate(self, ids: torch.Tensor, n_tokens: int) -> None:
        with torch.inference_mode():
            self.module.generate(ids, max_new_tokens=n_tokens, min_new_tokens=n_tokens,
                                 do_sample=False)  # fmt: skip
            self.module(input_ids=ids, use_cache=False)


def calls(lake: Lake, repeats: int) -> Iterator[Measure]:
    inspector = open_inspector(lake)
    own = Own(inspector)
    for keep in (False, True):
        first = inspector.inspect(PROMPT, keep=keep)
        rounds = [
            (took(lambda keep=keep: inspector.inspect(PROMPT, keep=keep)), took(own.forward))
            for _ in range(repeats)
        ]
        what = "kept" if keep else "thrown away"
        yield from beyond(f"text of {first.tokens.num_rows} tokens, {what}", rounds)
    found = inspector.inspect(CHAT, generate=GENERATED, keep=False).tokens
    n_made = found["kind"].to_pylist().count("generated")
    chat = torch.tensor([[own.tokenizer.bos_id] * (found.num_rows - n_made)])
    rounds = [
        (
            took(lambda: inspector.inspect(CHAT, generate=GENERATED, keep=False)),
            took(lambda: own.generate(chat, n_made)),
        )
        for _ in range(repeats)
    ]
    yield from beyond(f"chat with a reply of {n_made} tokens, thrown away", rounds)


def beyond(name: str, rounds: list[tuple[Took, Took]]) -> Iterator[Measure]:
    yield Measure(f"{name}: whole", tuple(a.wall for a, _ in rounds), "s")
    yield Measure(f"{name}: model's own", tuple(b.wall for _, b in rounds), "s")
    yield Measure(f"{name}: beyond", tuple(a.wall - b.wall for a, b in rounds), "s")
    yield Measure(f"{name}: beyond, processor", tuple(a.cpu - b.cpu for a, b in rounds), "s")


def first_calls(lake: Lake) -> Iterator[Measure]:
    """First calls of new processes, once the model and the coders are loaded."""
    for keep in (False, True):
        program = [sys.executable, "-P", str(Path(__file__).resolve())]
        program += ["--first", str(lake.path), *(["--keep"] if keep else [])]
        rows = []
        for _ in range(FRESH):
            done = subprocess.run(program, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        what = "kept" if keep else "thrown away"
        yield from beyond(f"first call, {what}", [(Took(*a), Took(*b)) for a, b in rows])


def first(path: str, *, keep: bool) -> None:
    inspector = open_inspector(scopelake.open(path))
    own = Own(inspector)
    alone = took(own.forward)  # first: what transformers loads late is the model's own
    call = took(lambda: inspector.inspect(PROMPT, keep=keep))
    print(json.dumps([[call.wall, call.cpu], [alone.wall, alone.cpu]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first:
        first(args.first, keep=args.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        lake = build(Path(folder))
        measures = [*first_calls(lake), *calls(lake, args.repeats)]
    config = (
        f"tiny model, 14 coders, float32, {torch.get_num_threads()} threads; corpus of "
        f"{CHARACTERS:,} characters; model and coders loaded before"
    )
    write_results("inspection", measures, config)


if __name__ == "__main__":
    main()
