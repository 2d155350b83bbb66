"""Trains the coders of the tiny model: JumpReLU, Matryoshka loss, saved in Gemma Scope 2's format.

Two phases. First one threshold for all features, steered so that L0 comes down to its target:
cheap, and few features die. Then every feature's threshold is trained by straight-through
gradients with a rectangular kernel, with a quadratic penalty on L0. Inputs and targets are divided
by one scalar each and centred while training; both are folded into the saved weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import activations
import torch
from safetensors.torch import save_file
from torch import Tensor
from train_model import pick_device

from scopelake import tiny

SEED = 11
PREFIX_WEIGHTS = (0.05, 0.05, 0.1, 0.8)
"""Of the loss over the first eighth, quarter, half and all features."""
BANDWIDTH = 0.02
SECOND_PHASE = 0.6
L0_WEIGHT = 0.5
BATCH = 512
"""Tokens a step: at equal time many small steps gave far lower FVU than few large ones."""
SCALED = 64
"""Batches from which inputs and targets are scaled and centred."""
LR = 5e-3
DEAD_AFTER = 150
"""Steps without a firing."""
REVIVED = 16
"""Dead features a token that are trained to explain what the living ones leave."""
RESAMPLE_AT = (0.15, 0.25, 0.35, 0.45, 0.52)


@dataclass(frozen=True)
class CoderSpec:
    """One coder: what it reads, what it reconstructs, what it is called."""

    family: str
    layer: int
    affine: bool = False

    @property
    def width(self) -> int:
        """Number of features: the residual stream needs more than a sublayer."""
        return 1024 if self.family == "resid_post_all" else 512

    @property
    def l0(self) -> float:
        """Target of the mean L0."""
        return 22.0 if self.family == "resid_post_all" else 14.0

    @property
    def steps(self) -> int:
        """Training steps: the residual stream is the hardest to reconstruct."""
        return 8_000 if self.family == "resid_post_all" else 6_000

    @property
    def folder(self) -> str:
        """Folder name as Google's."""
        label = f"layer_{self.layer}_width_{self.width}_l0_small"
        return label + ("_affine" if self.affine else "")

    @property
    def hooks(self) -> tuple[str, str]:
        """Hook points in and out, as config.json names them."""
        base = f"model.layers.{self.layer}"
        out = f"{base}.post_feedforward_layernorm.output"
        return {
            "resid_post_all": (f"{base}.output", f"{base}.output"),
            "attn_out_all": (f"{base}.self_attn.o_proj.input", f"{base}.self_attn.o_proj.input"),
            "mlp_out_all": (out, out),
            "transcoder_all": (f"{base}.pre_feedforward_layernorm.output", out),
        }[self.family]


SPECS = (
    *(CoderSpec("resid_post_all", layer) for layer in range(6)),
    *(CoderSpec("transcoder_all", layer, affine=layer == 3) for layer in range(6)),
    CoderSpec("attn_out_all", 3),
    CoderSpec("mlp_out_all", 3),
)


class JumpReLU(torch.autograd.Function):
    """pre * (pre > threshold) and its count, with straight-through gradients to the threshold."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [batch, width] and each token's L0 [batch]."""
        mask = pre > threshold
        ctx.save_for_backward(pre, threshold, mask)
        return pre * mask, mask.sum(dim=1).float()

    @staticmethod
    def backward(ctx: Any, grad_codes: Tensor, grad_l0: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel gradients within BANDWIDTH of the threshold."""
        pre, threshold, mask = ctx.saved_tensors
        near = ((pre - threshold).abs() < BANDWIDTH / 2).float() / BANDWIDTH
        grad_threshold = -(near * (grad_codes * threshold + grad_l0[:, None])).sum(dim=0)
        return grad_codes * mask, grad_threshold


class Coder:
    """A coder in training, in normalised units."""

    def __init__(self, x: Tensor, y: Tensor, spec: CoderSpec) -> None:
        width, affine = spec.width, spec.affine
        self.prefixes = (width // 8, width // 4, width // 2, width)
        self.s_in = float(x.pow(2).sum(1).mean().sqrt())
        self.s_out = float(y.pow(2).sum(1).mean().sqrt())
        self.centre = (x / self.s_in).mean(0)
        directions = torch.randn(width, y.shape[1])
        self.w_dec = torch.nn.functional.normalize(directions, dim=1).requires_grad_()
        same = x.shape[1] == y.shape[1]
        start = self.w_dec.detach().T.clone() if same else torch.randn(x.shape[1], width) * 0.1
        self.w_enc = start.requires_grad_()
        self.b_enc = torch.zeros(width, requires_grad=True)
        self.b_dec = (y / self.s_out).mean(0).clone().requires_grad_()
        self.log_threshold = torch.full((width,), -3.0, requires_grad=True)
        self.skip = torch.zeros(x.shape[1], y.shape[1], requires_grad=True) if affine else None

    def parameters(self) -> list[Tensor]:
        """What the main optimizer trains."""
        base = [self.w_enc, self.b_enc, self.w_dec, self.b_dec]
        return base if self.skip is None else [*base, self.skip]

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations of normalised, centred input."""
        return x @ self.w_enc + self.b_enc

    def loss(self, codes: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted squared error over the Matryoshka prefixes, and the whole width's residual."""
        out = self.b_dec if self.skip is None else self.b_dec + x @ self.skip
        total, start, residual = torch.zeros(()), 0, y
        for stop, weight in zip(self.prefixes, PREFIX_WEIGHTS, strict=True):
            out = out + codes[:, start:stop] @ self.w_dec[start:stop]
            residual = y - out
            total = total + weight * residual.pow(2).sum(1).mean()
            start = stop
        return total, residual

    def revival(self, pre: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """Loss that pulls dead features up: towards their thresholds, and to explain `residual`.

        The first part alone left 8 % of the features of attn_out dead.
        """
        shortfall = torch.relu(self.log_threshold.exp().detach() - pre)[:, dead]
        index = dead.nonzero().squeeze(1)
        values, chosen = pre[:, index].topk(min(REVIVED, len(index)), dim=1)
        codes = torch.zeros(len(pre), len(index)).scatter(1, chosen, torch.relu(values))
        error = (residual - codes @ self.w_dec[index]).pow(2).sum(1)
        return 1e-2 * shortfall.mean() + 0.1 * error.mean()

    @torch.no_grad()
    def normalise(self) -> None:
        """Keep decoder rows at unit norm."""
        self.w_dec.div_(self.w_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The weights in raw units: nothing to normalise, centre or subtract when encoding."""
        scale = self.s_out / self.s_in
        b_dec = self.s_out * self.b_dec
        tensors = {
            "w_enc": scale * self.w_enc,
            "b_enc": self.s_out * (self.b_enc - self.centre @ self.w_enc),
            "threshold": self.s_out * self.log_threshold.exp(),
            "w_dec": self.w_dec,
            "b_dec": b_dec,
        }
        if self.skip is not None:
            tensors["affine_skip_connection"] = scale * self.skip
            tensors["b_dec"] = b_dec - self.s_out * (self.centre @ self.skip)
        return {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}


def train(spec: CoderSpec, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> Coder:
    """Train one coder on batches of what goes in and what is to come out [BATCH, width]."""
    torch.manual_seed(SEED + spec.layer)
    first = [next(batches) for _ in range(SCALED)]
    x, y = (torch.cat(several) for several in zip(*first, strict=True))
    coder, target = Coder(x, y, spec), spec.l0
    main = torch.optim.Adam(coder.parameters(), lr=LR, betas=(0.9, 0.999))
    thresholds = torch.optim.Adam([coder.log_threshold], lr=3e-3)
    last_fired = torch.zeros(spec.width)
    shared, resampled = 0.01, 0
    for step in range(steps):
        progress = step / steps
        x, y = next(batches)
        batch = x / coder.s_in - coder.centre
        goal = y / coder.s_out
        pre = coder.pre(batch)
        if progress < SECOND_PHASE:
            codes = pre * (pre > shared)
            l0 = (codes.detach() > 0).sum(1).float()
            aim = target + (100 - target) * max(0.0, 1 - progress / 0.3)
            shared *= 1.0 + 0.02 * max(-1.0, min(1.0, float(l0.mean()) / aim - 1.0))
            with torch.no_grad():
                coder.log_threshold.fill_(float(torch.tensor(shared).log()))
        else:
            codes, l0 = JumpReLU.apply(pre, coder.log_threshold.exp())
        loss, residual = coder.loss(codes, batch, goal)
        dead = last_fired < step - DEAD_AFTER
        loss = loss + L0_WEIGHT * (l0.mean() / target - 1).pow(2)
        if bool(dead.any()):
            loss = loss + coder.revival(pre, residual.detach(), dead)
        for group in main.param_groups:
            group["lr"] = LR * min(1.0, step / 50) * min(1.0, 2.5 * (1.0 - progress))
        main.zero_grad()
        thresholds.zero_grad()
        loss.backward()
        main.step()
        if progress >= SECOND_PHASE:
            thresholds.step()
        coder.normalise()
        last_fired[(codes.detach() > 0).any(0)] = step
        if resampled < len(RESAMPLE_AT) and progress > RESAMPLE_AT[resampled]:
            resampled += 1
            _resample(coder, main, last_fired < step - DEAD_AFTER, batch, residual.detach())
    return coder


@torch.no_grad()
def _resample(
    coder: Coder, optimizer: torch.optim.Adam, dead: Tensor, x: Tensor, residual: Tensor
) -> None:
    """Point dead features at the worst reconstructed tokens of the batch."""
    count = int(dead.sum())
    if count == 0:
        return
    worst = torch.multinomial(residual.pow(2).sum(1), count)
    normal = torch.nn.functional.normalize
    coder.w_dec[dead] = normal(residual[worst], dim=1)
    source = residual[worst] if x.shape[1] == residual.shape[1] else x[worst]
    coder.w_enc[:, dead] = normal(source, dim=1).T
    coder.b_enc[dead] = 0.0
    for tensor, index in ((coder.w_dec, dead), (coder.b_enc, dead)):
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[tensor][name][index] = 0.0
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[coder.w_enc][name][:, dead] = 0.0


def save_coder(spec: CoderSpec, tensors: dict[str, Tensor], repo: Path) -> Path:
    """Write a coder in Gemma Scope 2's layout."""
    folder = repo / spec.family / spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "hf_hook_point_in": spec.hooks[0],
        "hf_hook_point_out": spec.hooks[1],
        "width": spec.width,
        "model_name": tiny.MODEL_NAME,
        "architecture": "jump_relu",
        "l0": spec.l0,
        "affine_connection": spec.affine,
        "type": "transcoder" if spec.family.startswith("transcoder") else "sae",
    }
    save_file(tensors, folder / "params.safetensors.tmp")
    (folder / "params.safetensors.tmp").replace(folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="0,1,2,3,4,5", help="which, e.g. 0,2,4")
    parser.add_argument("--tokens", type=int, default=800_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of training, fewer for a try")
    parser.add_argument("--folder", type=Path, default=tiny.coders_path(), help="for the coders")
    return parser.parse_args()


def main() -> None:
    """Train the coders of the layers asked for, one after the other."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = pick_device()
    torch.set_default_device(device)
    layers = set(map(int, args.layers.split(",")))
    specs = [s for s in SPECS if s.layer in layers]
    with tempfile.TemporaryDirectory() as scratch:
        hooks = [hook for spec in specs for hook in spec.hooks]
        lake = activations.store(Path(scratch), hooks, args.tokens, SEED)
        for spec in specs:
            started = time.monotonic()
            batches = activations.pairs(lake, spec.hooks, BATCH, SEED + spec.layer)
            coder = train(spec, batches, args.steps or spec.steps)
            folder = save_coder(spec, coder.folded(), args.folder)
            seconds = time.monotonic() - started
            print(f"{folder.parent.name}/{folder.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
