"""What coders are trained on: activations stored in a lake once, streamed in shuffled batches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import corpus
import numpy as np
import torch
from torch import Tensor

import scopelake
from scopelake import tiny

CODE, CHATS = "code", "chats"
SITES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "pre_feedforward_layernorm.output": "mlp_in",
}
SHUFFLED = 1 << 16
"""Tokens that are shuffled with each other."""


def site_of(hook: str) -> tuple[str, int]:
    """Return site and layer of a hook point such as ``model.layers.3.output``."""
    _, _, layer, end = hook.split(".", 3)
    return SITES[end], int(layer)


def store(folder: Path, hooks: Sequence[str], n_tokens: int, seed: int) -> scopelake.Lake:
    """Store bfloat16 activations of hook points on about `n_tokens` of the training text.

    The text is of files and of chats, as many of each as the model was trained on.
    """
    tokenizer = corpus.load_tokenizer(tiny.model_path())
    texts = corpus.stdlib_texts(held_out=False)
    chats = [row["messages"] for row in corpus.chat_rows("train")]
    rng = np.random.default_rng(seed)
    n_code = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    n_chats = corpus.CHAT_REPEATS * len(corpus.flatten(tokenizer, corpus.chat_texts("train")))
    share = n_tokens / (n_code + n_chats)
    # Each chat counts several times; a sample of them is as good as repeats.
    of_chats = share * corpus.CHAT_REPEATS
    sources = {
        CODE: [{"text": texts[i]} for i in _some(rng, len(texts), share)],
        CHATS: [{"messages": chats[i]} for i in _some(rng, len(chats), of_chats)],
    }
    lake = scopelake.create(folder / "lake")
    for name, records in sources.items():
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        lake.add_corpus(
            name, path, tokenizer=tiny.MODEL_NAME, context_length=corpus.CONTEXT, packing=True,
            chat=name == CHATS,
        )  # fmt: skip
        dense = sorted({"/".join(map(str, site_of(hook))) for hook in hooks})
        lake.ingest(name, model=tiny.MODEL_NAME, saes=[], dense=dense)
    return lake


def _some(rng: np.random.Generator, n: int, share: float) -> list[int]:
    return rng.permutation(n)[: max(1, round(n * min(share, 1.0)))].tolist()


def pairs(
    lake: scopelake.Lake, hooks: tuple[str, str], batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches at two hook points, float32 [batch, width], of the same tokens; without end.

    Files and chats come in turn, as often as they have tokens.
    """
    found = {name: _of_corpus(lake, name, hooks, batch, seed) for name in (CODE, CHATS)}
    rows = lake.sql("SELECT corpus, n_tokens FROM corpora").to_pylist()
    tokens = {row["corpus"]: row["n_tokens"] for row in rows}
    rng = np.random.default_rng(seed)
    chance = tokens[CHATS] / sum(tokens.values())
    while True:
        yield next(found[CHATS if rng.random() < chance else CODE])


def _of_corpus(
    lake: scopelake.Lake, name: str, hooks: tuple[str, str], batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    streams = {
        hook: lake.stream(
            site_of(hook)[1], site_of(hook)[0], corpus=name, batch_tokens=batch,
            shuffle_tokens=SHUFFLED, seed=seed,
        )
        for hook in hooks
    }  # fmt: skip
    device = torch.get_default_device()
    for _ in itertools.count():  # epochs
        # Streams of equal seeds over one corpus give the same tokens.
        for both in zip(*(streams[hook] for hook in dict.fromkeys(hooks)), strict=True):
            x, y = both[0], both[-1]
            yield x.to(device, torch.float32), y.to(device, torch.float32)
