"""Writes tests/data/format-v1: a lake of format version 1, and what must be read from it.

    python tests/data/make_format_v1.py

It was run once, with version 0.1.0. The lake is committed and never written again: whatever later
versions of this package do, they have to read it. `expected.json` holds answers taken from the
oracle's side: the model's own arithmetic, not the lake's queries.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import scopelake
from scopelake import tiny
from scopelake.lake import Lake

HERE = Path(__file__).resolve().parent
TARGET = HERE / "format-v1"
SAE = "resid_post_all/layer_1_width_1024_l0_small"
TEXT = """\
A lake keeps what the rivers bring. In spring the water is brown with soil from the hills, and in
autumn it carries leaves. Whoever wants to know what happened upstream can take a core from the
bottom and read it layer by layer: ash from a fire, pollen from a warm year, sand from a flood.

def depth(layers):
    return sum(layer.thickness for layer in layers)
"""
CHATS = [
    {
        "id": "ask",
        "messages": [
            {"role": "user", "content": "How deep is the lake?"},
            {"role": "assistant", "content": "Forty metres at the dam."},
            {"role": "user", "content": "And in summer?"},
            {"role": "assistant", "content": "Thirty-one."},
        ],
        "metadata": {"request": "nice", "reply": "answer"},
    },
    {
        "id": "push",
        "messages": [
            {"role": "user", "content": "Tell me the code of the sluice gate, now!"},
            {"role": "assistant", "content": "I will not give that out."},
        ],
        "metadata": {"request": "pushy", "reply": "refusal"},
    },
]


def build(folder: Path) -> Lake:
    """Make the lake: two corpora, one coder, one dense site, several shards and snapshots."""
    sources = folder / "sources"
    sources.mkdir()
    (sources / "lake.txt").write_text(TEXT)
    (sources / "chats.jsonl").write_text("".join(json.dumps(c) + "\n" for c in CHATS))
    lake = scopelake.create(folder / "lake")
    for name, chat in (("lake.txt", False), ("chats.jsonl", True)):
        corpus = name.partition(".")[0]
        lake.add_corpus(
            corpus, sources / name, tokenizer=tiny.MODEL_NAME, context_length=48, chat=chat,
            shard_contexts=2, root=sources,
        )  # fmt: skip
        lake.ingest(
            corpus, model=tiny.MODEL_NAME, saes=[tiny.coders_path() / SAE],
            dense=[("resid_post", 1)], device="cpu",
        )  # fmt: skip
    return lake


def expected(lake: Lake) -> dict[str, object]:
    """Firings of every token by plain transformers and torch; nothing of them from the lake."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny.model_path()), dtype=torch.float32)
    t = load_file(tiny.coders_path() / SAE / "params.safetensors")
    answers = []
    for row in lake.sql("SELECT corpus, context, token_ids FROM contexts ORDER BY ALL").to_pylist():
        ids = torch.tensor([row["token_ids"]])
        with torch.no_grad():
            x = model.model(ids, output_hidden_states=True).hidden_states[2][0]
        pre = x @ t["w_enc"] + t["b_enc"]
        fires = pre > t["threshold"]
        answers.append(
            {
                **row,
                "firings": [
                    [int(p), int(f), float(pre[p, f])] for p, f in fires.nonzero().tolist()
                ],
                "norms": [round(float(v), 4) for v in x.norm(dim=1)],
            }
        )
    assert np.isfinite([f[2] for a in answers for f in a["firings"]]).all()
    return {"sae": lake.sql("SELECT sae FROM saes")["sae"][0].as_py(), "contexts": answers}


def main() -> None:
    if TARGET.exists():
        raise SystemExit(f"{TARGET} is there; a committed lake of an old version stays as it is")
    TARGET.mkdir()
    # Delta logs name the folder in which a table was made.
    with tempfile.TemporaryDirectory() as folder:
        lake = build(Path(folder))
        (TARGET / "expected.json").write_text(json.dumps(expected(lake)) + "\n")
        shutil.copytree(lake.path, TARGET / "lake")
    n_bytes = sum(p.stat().st_size for p in TARGET.rglob("*") if p.is_file())
    print(f"{TARGET}: {n_bytes / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
