"""Trains the tiny Gemma 3 model for a given number of minutes and saves it."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpus
import numpy as np
import torch
from tokenizer import build_tokenizer, wrap_tokenizer
from torch import Tensor, nn
from torch.nn import functional

from scopelake import tiny

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Gemma3ForCausalLM

SEED = 20_250
WARMUP = 0.03
SAVE_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """What one training run is given."""

    minutes: float
    batch: int
    muon_lr: float
    adam_lr: float
    half: bool
    compiled: bool


def pick_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model() -> Gemma3ForCausalLM:
    """A freshly initialised model of the bundled shape."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=4096,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=48,
        intermediate_size=512,
        query_pre_attn_scalar=48,
        sliding_window=128,
        max_position_embeddings=2048,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=[1, 106],
        bos_token_id=2,
    )
    config._attn_implementation = "sdpa"
    model = Gemma3ForCausalLM(config)
    model.generation_config.eos_token_id = [1, 106]
    return model


def save_model(model: Gemma3ForCausalLM, tokenizer: Tokenizer, target: Path) -> None:
    """Writes model and tokenizer beside ``target``, then moves each file into place."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with torch.no_grad():
        state = {
            name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()
        }
    state.pop("lm_head.weight", None)
    copy = new_model().to(torch.bfloat16)
    copy.load_state_dict(state, strict=False)
    copy.save_pretrained(temporary)
    wrap_tokenizer(tokenizer).save_pretrained(temporary)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(temporary.iterdir()):
        path.replace(target / path.name)
    temporary.rmdir()


def load_model(folder: Path, device: torch.device) -> Gemma3ForCausalLM:
    """The saved model in float32, ready for measuring."""
    from transformers import Gemma3ForCausalLM

    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()  # type: ignore[no-any-return, arg-type, unused-ignore]


def row_losses(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean next-token loss in nats; the loss of the first token after ``<bos>`` counts too."""
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return functional.cross_entropy(flat, rows[:, 1:].reshape(-1))


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Tensor, batch: int = 32) -> float:
    """Mean loss over all rows, each of which starts with ``<bos>``."""
    total = 0.0
    for part in rows.split(batch):
        total += float(row_losses(model(part, use_cache=False).logits, part)) * len(part)
    return total / len(rows)


def batches(flat: corpus.Tokens, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches: each pass cuts the text at another offset and shuffles the rows."""
    rng = np.random.default_rng(seed)
    while True:
        rows = corpus.rows_of(flat[int(rng.integers(corpus.CONTEXT)) :])
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - batch + 1, batch):
            yield torch.from_numpy(rows[order[start : start + batch]])


def make_optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=settings.muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(other, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def lr_factor(progress: float) -> float:
    """Linear warm-up, then linear decay to zero, over the share of time spent."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    return max((1.0 - progress) / (1.0 - WARMUP), 0.0)


def half_context(device: torch.device, half: bool) -> AbstractContextManager[Any]:
    """Mixed precision when asked for."""
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


class Trainer:
    """One training run: the model, its optimizers and the clock."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(SEED)
        self.settings = settings
        self.device = device
        self.model = new_model().to(device)  # type: ignore[arg-type, unused-ignore]
        self.optimizers = make_optimizers(self.model, settings)
        self.base_lrs = [settings.muon_lr, settings.adam_lr]
        self.forward: Any = torch.compile(self.model) if settings.compiled else self.model

    def step(self, rows: Tensor, progress: float) -> float:
        """One update; returns the batch's loss."""
        factor = lr_factor(progress)
        with half_context(self.device, self.settings.half):
            logits = self.forward(rows, use_cache=False).logits
        loss = row_losses(logits, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def run(self, flat: corpus.Tokens, held_out: Tensor, tokenizer: Tokenizer) -> dict[str, Any]:
        """Trains until the time is spent, saving now and then; returns the run's record."""
        budget = self.settings.minutes * 60.0
        start = last_save = time.monotonic()
        steps, smooth = 0, math.log(4096)
        for rows in batches(flat, self.settings.batch, SEED):
            spent = time.monotonic() - start
            if spent >= budget:
                break
            smooth += 0.05 * (self.step(rows.to(self.device), spent / budget) - smooth)
            steps += 1
            if steps % 20 == 0:
                print(f"{spent:7.0f}s step {steps} loss {smooth:.3f}", flush=True)
            if time.monotonic() - last_save > SAVE_EVERY_SECONDS:
                save_model(self.model, tokenizer, tiny.model_path())
                print(f"held-out sample {mean_loss(self.model, held_out[:48]):.3f}", flush=True)
                last_save = time.monotonic()
        save_model(self.model, tokenizer, tiny.model_path())
        seconds = time.monotonic() - start
        seen = steps * self.settings.batch * corpus.CONTEXT
        return {"steps": steps, "tokens_seen": seen, "seconds": round(seconds, 1)}


def prepare_tokenizer() -> Tokenizer:
    """The bundled tokenizer, learned from the training text when it is not there yet."""
    folder = tiny.model_path()
    if (folder / "tokenizer.json").exists():
        return corpus.load_tokenizer(folder)
    texts = corpus.stdlib_texts(held_out=False) + corpus.chat_texts("train") * corpus.CHAT_REPEATS
    tokenizer = build_tokenizer(texts)
    folder.mkdir(parents=True, exist_ok=True)
    wrap_tokenizer(tokenizer).save_pretrained(folder)
    return tokenizer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=17.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="float32, not bfloat16 mixed")
    parser.add_argument("--compiled", action="store_true", help="compile the model first")
    parser.add_argument("--record", type=Path, default=Path("record.json"))
    return parser.parse_args()


def main() -> None:
    """Runs the training from the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    tokenizer = prepare_tokenizer()
    flat = corpus.training_tokens(tokenizer)
    device = pick_device()
    held_out = torch.from_numpy(corpus.rows_of(corpus.held_out_tokens(tokenizer))).to(device)
    settings = Settings(
        args.minutes, args.batch, args.muon_lr, args.adam_lr, not args.full, args.compiled
    )
    record = Trainer(settings, device).run(flat, held_out, tokenizer)
    record |= {"batch": args.batch, "context": corpus.CONTEXT, "device": device.type}
    args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(record, flush=True)


if __name__ == "__main__":
    main()
