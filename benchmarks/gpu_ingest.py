"""What storing costs an ingest on a GPU: Gemma 3's published shapes, random weights, real text.

    python benchmarks/gpu_ingest.py [--size 1b] [--coders 4] [--width 16384] [--tokens 2000000]

Model and coders are random (their thresholds let about `--l0` features fire on a token of this
model), so that what is stored has the volume of the real thing and means nothing. Ingest alternates
with the same batches computed alone: forward, capture and encode, and nothing kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gpu import card
from record import Measure, write_results
from safetensors.torch import save_file

import scopelake
from scopelake import tiny
from scopelake.ingest.capture import capture, pad, run_text
from scopelake.ingest.coder_weights import load_encoders
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.find_coders import find_coders
from scopelake.ingest.grid import published_model
from scopelake.ingest.model import LoadedModel, find_model, load_model
from scopelake.ingest.stages import device_idle, stages_text
from scopelake.kernels.encode import Task, choose, encode_all
from scopelake.kernels.weights import EncoderWeights
from scopelake.lake import Lake
from scopelake.names import SiteLayer

CORPUS, CONTEXT, BATCH_TOKENS = "text", 1_024, 16_384
SAMPLE_TOKENS = 16_384
"""Of which thresholds are taken."""


def make_model(folder: Path, size: str, n_layers: int | None, device: torch.device) -> None:
    """Write a Gemma 3 of a published size with random weights, and the tiny model's tokenizer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = published_model(f"google/gemma-3-{size}-it")
    assert shape is not None, size
    config = Gemma3TextConfig(
        vocab_size=shape.vocab, hidden_size=shape.d_model, intermediate_size=shape.ffn,
        num_hidden_layers=n_layers or shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.head_dim, sliding_window=min(w for w in shape.windows if w),
        max_position_embeddings=CONTEXT, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        module = Gemma3ForCausalLM(config).to(torch.bfloat16)
    module.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.model_path() / name, folder)


def make_coders(
    folder: Path, model: LoadedModel, lake: Lake, *, n: int, width: int, l0: int
) -> None:
    """Write `n` residual coders of a random direction for each feature, at layers all over."""
    layers = [round((i + 1) * model.n_layers / (n + 1)) for i in range(n)]
    sites = [SiteLayer("resid_post", layer) for layer in layers]
    every = contexts_of(lake)
    contexts = every[:: max(1, len(every) * CONTEXT // SAMPLE_TOKENS)]
    found = capture(model, contexts, sites)
    for site in sites:
        place = folder / "resid_post_all" / f"layer_{site.layer}_width_{width // 1024}k_l0_medium"
        place.mkdir(parents=True)
        draw = torch.Generator(model.device).manual_seed(site.layer)
        w_enc = torch.randn(model.d_model, width, generator=draw, device=model.device)
        w_enc /= w_enc.norm(dim=0)
        pre = found[site].float() @ w_enc
        rank = max(1, round(l0 / width * len(pre)))
        threshold = pre.topk(rank, dim=0).values[-1].clamp(min=1e-3)
        zeros = torch.zeros(model.d_model)
        tensors = {
            "w_enc": w_enc.cpu(), "w_dec": w_enc.T.contiguous().cpu(), "b_dec": zeros,
            "b_enc": torch.zeros(width), "threshold": threshold.cpu(),
        }  # fmt: skip
        save_file(tensors, place / "params.safetensors")
        hook = f"model.layers.{site.layer}.output"
        (place / "config.json").write_text(json.dumps({
            "hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": width,
            "model_name": model.name, "architecture": "jump_relu", "l0": float(l0),
            "affine_connection": False, "type": "sae",
        }))  # fmt: skip


def add_text(lake: Lake, folder: Path, n_tokens: int, shard: int, tokenizer: Path) -> None:
    """Add the standard library's source, over and over under other names, as far as asked for."""
    root, files, n_bytes, copy = Path(sysconfig.get_path("stdlib")), [], 0, 0
    while n_bytes < 3 * n_tokens:
        for path in tiny.stdlib_files(held_out=False):
            text = path.read_text(encoding="utf-8")
            name = f"{copy}-{path.relative_to(root).as_posix().replace('/', '-')}.txt"
            (folder / name).write_text(f"# copy {copy}\n{text}", encoding="utf-8")
            files.append(folder / name)
            if (n_bytes := n_bytes + len(text)) >= 3 * n_tokens:
                break
        copy += 1
    lake.add_corpus(
        CORPUS, files, tokenizer=tokenizer, context_length=CONTEXT, shard_contexts=shard,
    )  # fmt: skip


def contexts_of(lake: Lake) -> list[npt.NDArray[np.int32]]:
    """Token ids of every context."""
    store = lake._store  # noqa: SLF001
    rows = store.read("contexts", store.snapshot(), columns=["context", "token_ids"])
    return [np.array(v, np.int32) for v in rows.sort_by("context")["token_ids"].to_pylist()]


@dataclass(frozen=True)
class Alone:
    """The same computation with nothing kept."""

    model: LoadedModel
    coders: list[tuple[SiteLayer, EncoderWeights]]
    contexts: list[npt.NDArray[np.int32]]
    shard: int

    def groups(self) -> Iterable[list[npt.NDArray[np.int32]]]:
        for start in range(0, len(self.contexts), self.shard):
            shard = self.contexts[start : start + self.shard]
            for group in batches([len(ids) for ids in shard], BATCH_TOKENS):
                yield [shard[i] for i in group]

    def encode(self) -> None:
        """Forward, capture, encode."""
        sites = [site for site, _ in self.coders]
        for group in self.groups():
            found = capture(self.model, group, sites)
            encode_all([Task(found[site], weights) for site, weights in self.coders])

    def forward(self) -> None:
        """The model's own forward pass."""
        for group in self.groups():
            batch = pad(group, "right", self.model.device)
            with torch.inference_mode():
                run_text(self.model, batch)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call and of what it left to the device."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--layers", type=int, help="of the model; by default as published")
    parser.add_argument("--coders", type=int, default=4)
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--l0", type=int, default=60, help="of each coder, about")
    parser.add_argument("--shard", type=int, default=32, help="contexts")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = folder / "model"
        make_model(place, args.size, args.layers, device)
        (folder / "text").mkdir()
        lake = scopelake.create(folder / "lake")
        add_text(lake, folder / "text", args.tokens, args.shard, place)
        model = load_model(find_model(place), device=args.device)
        make_coders(folder / "coders", model, lake, n=args.coders, width=args.width, l0=args.l0)
        coders = [
            (c.sites[0], load_encoders(c, device)[0]) for c in find_coders([folder / "coders"])
        ]
        alone = Alone(model, coders, contexts_of(lake), args.shard)
        warm = replace(alone, contexts=alone.contexts[: args.shard])
        n_tokens = sum(map(len, alone.contexts))
        seconds(warm.encode, device)  # compiles, and takes the device's memory
        for repeat in range(args.repeats):
            copy = folder / f"lake-{repeat}"
            shutil.copytree(folder / "lake", copy)
            found.setdefault("forward", []).append(seconds(alone.forward, device))
            found.setdefault("alone", []).append(seconds(alone.encode, device))
            done = scopelake.open(copy).ingest(
                CORPUS, model=place, saes=[folder / "coders"], device=args.device
            )
            found.setdefault("ingest", []).append(done.seconds)
            found.setdefault("firings", []).append(done.firings / done.tokens)
            found.setdefault("idle", []).append(100 * device_idle(done.stages, done.seconds))
            print(stages_text(done.stages, done.seconds))
            for stage, spent in done.stages.items():
                found.setdefault(f"stage: {stage}", []).append(100 * spent / done.seconds)
            shutil.rmtree(copy)
    rates = {key: tuple(n_tokens / s for s in found[key]) for key in ("forward", "alone", "ingest")}
    over = tuple(i / a for i, a in zip(found["ingest"], found["alone"], strict=True))
    what = f"{args.size}, {args.coders} coders of {args.width}"
    measures = [
        Measure(f"{what}: plain forward", rates["forward"], "tokens/s"),
        Measure(f"{what}: forward and encode, nothing kept", rates["alone"], "tokens/s"),
        Measure(f"{what}: ingest", rates["ingest"], "tokens/s"),
        Measure(f"{what}: ingest over nothing kept", over, "ratio"),
        Measure(f"{what}: firings", tuple(found["firings"]), "a token"),
        *(
            Measure(f"{what}: {key}", tuple(values), "% of the time")
            for key, values in found.items()
            if key.startswith("stage")
        ),
        Measure(f"{what}: device idle", tuple(found["idle"]), "% of the time"),
    ]
    how = choose(device).impl
    config = f"random weights, {n_tokens} tokens, {how}, {card() if device.type == 'cuda' else ''}"
    write_results(f"gpu_ingest-{args.size}-{args.coders}x{args.width}", measures, config)


if __name__ == "__main__":
    sys.exit(main())
