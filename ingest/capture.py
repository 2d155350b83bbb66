"""Reading activations at sites of Gemma 3 while it runs, and no more of it than needed.

The modules are Gemma Scope 2's: output of a decoder layer (``resid_post``), input of
``self_attn.o_proj`` (``attn_out``), output of ``post_feedforward_layernorm`` (``mlp_out``) and
output of ``pre_feedforward_layernorm`` (``mlp_in``, gain included).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from scopelake.errors import CoderMismatchError
from scopelake.ingest.model import LoadedModel, ModelIdentity
from scopelake.names import SiteLayer

PaddingSide = Literal["left", "right"]


class _StopForwardError(Exception):
    """Raised by a hook once the highest layer asked for has run."""


def decoder_layers(module: Any) -> Any:  # noqa: ANN401
    """Return the text decoder's layers of either Gemma 3 class."""
    return text_model(module).layers


def text_model(module: Any) -> Any:  # noqa: ANN401
    """Return the text decoder of either Gemma 3 class, without its unembedding."""
    return module.model if hasattr(module.model, "layers") else module.model.language_model


def site_width(model: ModelIdentity, site: SiteLayer) -> int:
    """Return the width of a site's tensor.

    Raises:
        CoderMismatchError: the model has no such layer.
    """
    if site.layer >= model.n_layers:
        raise CoderMismatchError(
            f"{site} was asked for; {model.name} has layers 0 to {model.n_layers - 1}; choose one "
            "of them"
        )
    return model.attention_width if site.site == "attn_out" else model.d_model


def capture(
    model: LoadedModel,
    contexts: Sequence[npt.NDArray[np.int32]],
    sites: Sequence[SiteLayer],
    *,
    padding_side: PaddingSide = "right",
) -> dict[SiteLayer, torch.Tensor]:
    """Run one batch and return each site's activations of the real tokens, padding removed.

    Args:
        model: the model.
        contexts: token ids of each context, any lengths, at least one token each.
        sites: what to read.
        padding_side: where shorter contexts are padded; the result does not depend on it.

    Returns:
        For each site a tensor [n_tokens, width] in the model's dtype on its device: the tokens of
        the first context, then of the second, and so on.
    """
    batch = pad(contexts, padding_side, model.device)
    found: dict[SiteLayer, torch.Tensor] = {}
    with torch.inference_mode(), _hooks(model, sites, found):
        with suppress(_StopForwardError):
            run_text(model, batch)
        keep = batch.mask.view(-1)
        return {
            # A model spread over devices gives each layer's tensor on the layer's own.
            site: found[site].flatten(0, 1)[keep.to(found[site].device)].to(model.device)
            for site in sites
        }


@dataclass(frozen=True)
class Batch:
    """Contexts of several lengths as one rectangle, on the model's device."""

    ids: torch.Tensor
    """[n_contexts, longest], int64; 0 where there is no token."""
    mask: torch.Tensor
    """[n_contexts, longest], bool; whether there is a token."""


def pad(
    contexts: Sequence[npt.NDArray[np.int32]], side: PaddingSide, device: torch.device
) -> Batch:
    """Return `contexts` padded on one side to the longest."""
    longest = max(len(c) for c in contexts)
    ids = np.zeros((len(contexts), longest), dtype=np.int64)
    mask = np.zeros((len(contexts), longest), dtype=bool)
    for row, context in enumerate(contexts):
        where = slice(0, len(context)) if side == "right" else slice(longest - len(context), None)
        ids[row, where] = context
        mask[row, where] = True
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))


def run_text(model: LoadedModel, batch: Batch) -> torch.Tensor:
    """Run the text decoder; return its last hidden states [n_contexts, longest, d_model]."""
    # What is padded behind its tokens needs no mask: none of them sees what comes after it.
    is_behind = bool((batch.mask[:, 1:] <= batch.mask[:, :-1]).all())
    if is_behind:
        positions = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
        mask: Any = {"full_attention": None, "sliding_attention": None}
    else:
        positions = (batch.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        mask = batch.mask.long()
    output = text_model(model.module)(
        input_ids=batch.ids, attention_mask=mask, position_ids=positions, use_cache=False
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def hook_site(
    model: LoadedModel, site: SiteLayer, seen: Callable[[torch.Tensor], torch.Tensor | None]
) -> Any:  # noqa: ANN401
    """Call `seen` with the site's tensor in each forward; what it returns replaces it, but None.

    Returns:
        The hook's handle; remove it.
    """
    layer = decoder_layers(model.module)[site.layer]

    def on_output(module: Any, args: Any, output: Any) -> Any:  # noqa: ANN401
        # Decoder layers return a tuple up to transformers 4, a bare tensor from 5.0 on.
        if not isinstance(output, tuple):
            return seen(output)
        new = seen(output[0])
        return None if new is None else (new, *output[1:])

    def on_input(module: Any, args: Any) -> Any:  # noqa: ANN401
        new = seen(args[0])
        return None if new is None else (new, *args[1:])

    if site.site == "attn_out":
        return layer.self_attn.o_proj.register_forward_pre_hook(on_input)
    if site.site == "mlp_out":
        return layer.post_feedforward_layernorm.register_forward_hook(on_output)
    if site.site == "mlp_in":
        return layer.pre_feedforward_layernorm.register_forward_hook(on_output)
    return layer.register_forward_hook(on_output)


@contextmanager
def _hooks(
    model: LoadedModel, sites: Sequence[SiteLayer], found: dict[SiteLayer, torch.Tensor]
) -> Iterator[None]:
    handles: list[Any] = []
    try:
        handles.extend(hook_site(model, site, partial(_keep, found, site)) for site in sites)
        last = decoder_layers(model.module)[max(site.layer for site in sites)]
        handles.append(last.register_forward_hook(_stop))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[SiteLayer, torch.Tensor], site: SiteLayer, tensor: torch.Tensor) -> None:
    found[site] = tensor


def _stop(module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
    raise _StopForwardError
