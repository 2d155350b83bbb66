"""Measures the saved model and coders on held-out text and writes MODEL_CARD.md."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_coders import SPECS, CoderSpec, activations
from train_model import load_model, mean_loss, pick_device

from scopelake import tiny

VOCABULARY = 4096


@dataclass(frozen=True)
class CoderFigures:
    """One coder on held-out text, BOS excluded."""

    name: str
    fvu: float
    l0: float
    dead: float
    """Share of features that fire on no held-out token."""


def bigram_loss(train: corpus.Tokens, held_out: corpus.Tokens) -> float:
    """Mean next-token loss (nats) of the best bigram model, interpolated with a unigram.

    p(b | a) = (count(a, b) + k * p(b)) / (count(a) + k), p(b) add-one smoothed; k is the best of
    a few on the held-out text itself, which favours the bigram.
    """
    unigram = (np.bincount(train, minlength=VOCABULARY) + 1.0) / (len(train) + VOCABULARY)
    pairs = np.bincount(train[:-1] * VOCABULARY + train[1:], minlength=VOCABULARY**2)
    firsts = np.bincount(train[:-1], minlength=VOCABULARY)
    a, b = held_out[:, :-1].ravel(), held_out[:, 1:].ravel()
    seen, first, prior = pairs[a * VOCABULARY + b], firsts[a], unigram[b]
    return min(
        float(-np.log((seen + k * prior) / (first + k)).mean()) for k in (3, 10, 30, 100, 300, 1000)
    )


def figures(spec: CoderSpec, x: Tensor, y: Tensor) -> CoderFigures:
    """FVU, mean L0 and dead share of a saved coder: the maths of the format, written out."""
    folder = tiny.coders_path() / spec.family / spec.folder
    t = load_file(folder / "params.safetensors")
    squares, l0, fired = 0.0, 0.0, torch.zeros(t["w_enc"].shape[1], dtype=torch.bool)
    for xs, ys in zip(x.split(8192), y.split(8192), strict=True):
        pre = xs @ t["w_enc"] + t["b_enc"]
        codes = torch.relu(pre) * (pre > t["threshold"])
        out = codes @ t["w_dec"] + t["b_dec"]
        if "affine_skip_connection" in t:
            out = out + xs @ t["affine_skip_connection"]
        squares += float((ys - out).pow(2).sum())
        l0 += float((codes > 0).sum())
        fired |= (codes > 0).any(0)
    total = float((y - y.mean(0)).pow(2).sum())
    name = f"{spec.family}/{spec.folder}"
    return CoderFigures(name, squares / total, l0 / len(x), 1 - float(fired.float().mean()))


def measure(threads: int) -> dict[str, Any]:
    """Every figure of the card."""
    torch.set_num_threads(threads)
    model = load_model(tiny.model_path(), pick_device())
    tokenizer = corpus.load_tokenizer(tiny.model_path())
    rows = torch.from_numpy(corpus.rows_of(corpus.held_out_tokens(tokenizer)))
    train = corpus.training_tokens(tokenizer)
    train_rows = corpus.rows_of(train).ravel()  # with BOS, as the model saw it
    coders = []
    for layer in range(6):
        specs = [s for s in SPECS if s.layer == layer]
        found = activations(model, rows[:600], {h for s in specs for h in s.hooks})
        coders += [figures(s, found[s.hooks[0]], found[s.hooks[1]]) for s in specs]
    return {
        "loss": mean_loss(model, rows),
        "bigram": bigram_loss(train_rows, rows.numpy()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train),
        "held_out_tokens": rows.numel(),
        "coder_tokens": 600 * (corpus.CONTEXT - 1),
        "coders": sorted(coders, key=lambda c: c.name),
    }


def card(f: dict[str, Any], record: dict[str, Any]) -> str:
    """The text of MODEL_CARD.md."""
    rows = "\n".join(
        f"| `{c.name}` | {c.fvu:.3f} | {c.l0:.1f} | {c.dead:.1%} |" for c in f["coders"]
    )
    return f"""# Model card: gemma-3-tiny and gemma-scope-2-tiny

A {f["parameters"] / 1e6:.2f} M parameter `Gemma3ForCausalLM` and {len(f["coders"])} coders in
Gemma Scope 2's file format, made so that scopelake can be run, tested and shown without a
download. They are trained from scratch and share no weights with Google's models. They are good
for nothing else: do not draw conclusions about Gemma from them.

Written by `examples/train_tiny/evaluate.py` from the saved files, run in float32.

## Model

| | |
|---|---|
| shape | 6 layers (5 sliding, window 128, then 1 full), d_model 128, 4 heads of 48, 1 kv head, \
mlp 512, vocabulary {VOCABULARY} |
| training | {record["tokens_seen"]:,} tokens seen of {f["train_tokens"]:,}, \
{record["seconds"]:.0f} s on {record["device"]} |
| held-out loss | **{f["loss"]:.3f} nat** a token, {f["held_out_tokens"]:,} tokens |
| smoothed bigram | {f["bigram"]:.3f} nat on the same tokens |
| gap | **{f["bigram"] - f["loss"]:.3f} nat** |

The bigram model is interpolated with an add-one unigram, its weight chosen on the held-out text
itself, which favours it.

## Coders

JumpReLU, Matryoshka prefixes of an eighth, a quarter and half the width; all of them trained in
{record["coder_seconds"] / 60:.0f} minutes, two side by side on 2 cores. Measured on
{f["coder_tokens"]:,} held-out tokens, BOS excluded. FVU is the squared error over the squared
distance from the mean; a dead feature fires on none of these tokens.

| coder | FVU | mean L0 | dead |
|---|---|---|---|
{rows}

## Data

The running interpreter's own standard library ({platform.python_implementation()}
{platform.python_version()}: docstrings and source; a tenth of the files, chosen by the hash of
their path, is held out), and the **synthetic** chats in `chats.jsonl`, written by template in
`examples/train_tiny/dialogues.py`; their labels are in each record's metadata.

Licence Apache-2.0. Trained with torch {torch.__version__} on {platform.machine()}, 2 threads.
"""


def main() -> None:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, default=Path("record.json"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    record = json.loads(args.record.read_text())
    text = card(measure(args.threads), record)
    (tiny.data_path() / "MODEL_CARD.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
