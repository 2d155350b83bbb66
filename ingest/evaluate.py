"""How well a coder reconstructs: FVU, L0, dead features, and the loss with it spliced in.

BOS is left out of every figure: its tokens are neither counted, nor reconstructed, nor predicted
from. FVU is the squared error over the squared distance from the mean activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scopelake.ingest.capture import Batch, capture, hook_site, pad, run_text
from scopelake.ingest.coder_weights import load_decoder, load_encoders
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.encode_shard import batches
from scopelake.ingest.model import LoadedModel
from scopelake.kernels.decode import decode
from scopelake.kernels.encode import encode
from scopelake.kernels.reference import reconstruction_error
from scopelake.kernels.weights import DecoderWeights, EncoderWeights, SparseCodes, join_layers

BATCH_TOKENS: Final = 4096
_LOGIT_ROWS: Final = 512


@dataclass(frozen=True)
class EvaluationContext:
    """A context and which of its tokens count."""

    token_ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.bool_]
    """[n_tokens]; False on BOS."""


@dataclass(frozen=True)
class Evaluation:
    """One coder at one layer that it reads and reconstructs."""

    layer: int
    n_contexts: int
    n_tokens: int
    """Tokens that count."""
    fvu: float
    """NaN where the activations do not vary, as those of one token."""
    l0: float
    """Mean firings a token of the encoder of this layer."""
    dead: int
    """Features of that encoder that fired on none of these tokens."""
    loss: float
    """Mean next-token loss of the model, nats, over predictions from tokens that count."""
    loss_spliced: float | None
    """The same with the reconstruction in place of the activation; None for coders of several
    layers and where nothing is predicted."""


@dataclass
class _Sums:
    """Running sums over tokens, for one coder; by layer where there are several."""

    error: list[float]
    squares: list[float]
    """Of the targets."""
    total: list[torch.Tensor]
    """Of the targets, [d_out] each, float64."""
    fired: torch.Tensor
    """[width], firings of each feature."""
    n_tokens: int = 0


def evaluate(
    coder: CoderFiles, model: LoadedModel, contexts: Sequence[EvaluationContext], clean_loss: float
) -> list[Evaluation]:
    """Evaluate `coder` on `contexts`; one result for each layer that it reads.

    Args:
        coder: fits `model`.
        model: the model.
        contexts: at least one with a token that counts.
        clean_loss: `model_loss` of the same contexts.

    Raises:
        CoderFileError: a value in the coder's files is not finite.
    """
    encoders = load_encoders(coder, model.device)
    decoder = load_decoder(coder, model.device)
    sums = _sum(coder, encoders, decoder, model, contexts)
    spliced = None
    if len(coder.sites) == 1:
        spliced = _spliced_loss(coder, encoders, decoder, model, contexts)
    n, fired = sums.n_tokens, sums.fired.view(len(coder.sites), -1)
    return [
        Evaluation(
            layer=site.layer,
            n_contexts=len(contexts),
            n_tokens=n,
            fvu=_fvu(sums, i),
            l0=float(fired[i].sum()) / n,
            dead=int((fired[i] == 0).sum()),
            loss=clean_loss,
            loss_spliced=spliced,
        )
        for i, site in enumerate(coder.sites)
    ]


def _fvu(sums: _Sums, layer: int) -> float:
    variation = sums.squares[layer] - float(sums.total[layer].square().sum()) / sums.n_tokens
    # What is left of equal squares is rounding.
    is_varied = variation > 1e-12 * sums.squares[layer]
    return sums.error[layer] / variation if is_varied else float("nan")


def model_loss(model: LoadedModel, contexts: Sequence[EvaluationContext]) -> float:
    """Return the model's own mean next-token loss, nats, over predictions from counted tokens."""
    total, n_predictions = 0.0, 0
    with torch.inference_mode():
        for group in _groups(contexts):
            batch = pad([c.token_ids for c in group], "right", model.device)
            loss, n = _loss(model, batch, _counts(group, batch))
            total, n_predictions = total + loss, n_predictions + n
    return total / n_predictions if n_predictions else float("nan")


def _sum(
    coder: CoderFiles,
    encoders: tuple[EncoderWeights, ...],
    decoder: DecoderWeights,
    model: LoadedModel,
    contexts: Sequence[EvaluationContext],
) -> _Sums:
    n_out, width = len(coder.targets), coder.width
    sums = _Sums(
        [0.0] * n_out,
        [0.0] * n_out,
        [torch.zeros(coder.d_out, dtype=torch.float64) for _ in range(n_out)],
        torch.zeros(width, dtype=torch.int64),
    )
    sites = sorted({*coder.sites, *coder.targets}, key=str)
    for group in _groups(contexts):
        found = capture(model, [c.token_ids for c in group], sites)
        keep = torch.from_numpy(np.concatenate([c.counts for c in group])).to(model.device)
        with torch.inference_mode():
            xs = [found[s][keep].float() for s in coder.sites]
            codes = _encode(encoders, xs)
            y = decode(codes, decoder, torch.stack(xs, dim=1) if coder.affine else None)
            for i, target in enumerate(coder.targets):
                true = found[target][keep].double()
                sums.error[i] += float(reconstruction_error(y[:, i], true).sum())
                sums.squares[i] += float(true.square().sum())
                sums.total[i] += true.sum(dim=0).cpu()
            sums.fired += torch.bincount(codes.features, minlength=width).cpu()
            sums.n_tokens += codes.n_tokens
    return sums


def _spliced_loss(
    coder: CoderFiles,
    encoders: tuple[EncoderWeights, ...],
    decoder: DecoderWeights,
    model: LoadedModel,
    contexts: Sequence[EvaluationContext],
) -> float | None:
    """The model's loss when the target is the reconstruction on every token that counts."""
    total, n_predictions = 0.0, 0
    with torch.inference_mode():
        for group in _groups(contexts):
            batch = pad([c.token_ids for c in group], "right", model.device)
            counts = _counts(group, batch)
            read: list[torch.Tensor] = []

            def replaced(
                tensor: torch.Tensor,
                counts: torch.Tensor = counts,
                read: list[torch.Tensor] = read,
            ) -> torch.Tensor:
                source = read.pop() if read else tensor
                x = source[counts.to(source.device)].to(model.device, torch.float32)
                y = decode(_encode(encoders, [x]), decoder, x[:, None] if coder.affine else None)
                new = tensor.clone()
                new[counts.to(tensor.device)] = y[:, 0].to(tensor)
                return new

            (site,), (target,) = coder.sites, coder.targets
            hooks = [hook_site(model, target, replaced)]
            if site != target:
                hooks.append(hook_site(model, site, read.append))
            try:
                loss, n = _loss(model, batch, counts)
            finally:
                for hook in hooks:
                    hook.remove()
            total, n_predictions = total + loss, n_predictions + n
    return total / n_predictions if n_predictions else None


def _encode(encoders: tuple[EncoderWeights, ...], xs: Sequence[torch.Tensor]) -> SparseCodes:
    codes = [encode(x, encoder) for x, encoder in zip(xs, encoders, strict=True)]
    return join_layers(codes, [e.width for e in encoders])


def _loss(model: LoadedModel, batch: Batch, counts: torch.Tensor) -> tuple[float, int]:
    """Sum of the loss of predicting the next token from counted tokens, and how many there are."""
    hidden = run_text(model, batch).to(model.device)
    predicts = counts[:, :-1] & batch.mask[:, 1:]
    rows, targets = hidden[:, :-1][predicts], batch.ids[:, 1:][predicts]
    unembed = model.module.get_output_embeddings()
    total = 0.0
    # A few rows at a time: real logits are a megabyte a token.
    for start in range(0, len(rows), _LOGIT_ROWS):
        logits = unembed(rows[start : start + _LOGIT_ROWS]).to(model.device, torch.float32)
        total += float(cross_entropy(logits, targets[start : start + _LOGIT_ROWS], reduction="sum"))
    return total, len(rows)


def _counts(group: Sequence[EvaluationContext], batch: Batch) -> torch.Tensor:
    counts = torch.zeros_like(batch.mask)
    for row, context in enumerate(group):
        counts[row, : len(context.counts)] = torch.from_numpy(context.counts)
    return counts


def _groups(contexts: Sequence[EvaluationContext]) -> Iterator[list[EvaluationContext]]:
    for group in batches([len(c.token_ids) for c in contexts], BATCH_TOKENS):
        yield [contexts[i] for i in group]
