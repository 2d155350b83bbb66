"""Reading activations at sites of Gemma 3 while it runs, and no more of it than needed.

The modules are Gemma Scope 2's: output of a decoder layer (``resid_post``), input of
``self_attn.o_proj`` (``attn_out``), output of ``post_feedforward_layernorm`` (``mlp_out``) and
output of ``pre_feedforward_layernorm`` (``mlp_in``, gain included).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from scopelake.errors import CoderMismatchError
from scopelake.ingest.model import LoadedModel
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


def site_width(model: LoadedModel, site: SiteLayer) -> int:
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
    ids, mask = _pad(contexts, padding_side, model.device)
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    found: dict[SiteLayer, torch.Tensor] = {}
    with torch.inference_mode(), _hooks(model, sites, found):
        with suppress(_StopForwardError):
            text_model(model.module)(
                input_ids=ids,
                attention_mask=None if bool(mask.all()) else mask.long(),
                position_ids=positions,
                use_cache=False,
            )
        keep = mask.view(-1)
        return {site: found[site].flatten(0, 1)[keep] for site in sites}


def _pad(
    contexts: Sequence[npt.NDArray[np.int32]], side: PaddingSide, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(c) for c in contexts)
    ids = np.zeros((len(contexts), longest), dtype=np.int64)
    mask = np.zeros((len(contexts), longest), dtype=bool)
    for row, context in enumerate(contexts):
        where = slice(0, len(context)) if side == "right" else slice(longest - len(context), None)
        ids[row, where] = context
        mask[row, where] = True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@contextmanager
def _hooks(
    model: LoadedModel, sites: Sequence[SiteLayer], found: dict[SiteLayer, torch.Tensor]
) -> Iterator[None]:
    layers = decoder_layers(model.module)
    handles: list[Any] = []
    try:
        handles.extend(_register(layers[site.layer], site, found) for site in sites)
        last = max(site.layer for site in sites)
        handles.append(layers[last].register_forward_hook(_stop))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _register(layer: Any, site: SiteLayer, found: dict[SiteLayer, torch.Tensor]) -> Any:  # noqa: ANN401
    def keep_output(module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        # Decoder layers return a tuple up to transformers 4, a bare tensor from 5.0 on.
        found[site] = output[0] if isinstance(output, tuple) else output

    def keep_input(module: Any, args: Any) -> None:  # noqa: ANN401
        found[site] = args[0]

    if site.site == "attn_out":
        return layer.self_attn.o_proj.register_forward_pre_hook(keep_input)
    if site.site == "mlp_out":
        return layer.post_feedforward_layernorm.register_forward_hook(keep_output)
    if site.site == "mlp_in":
        return layer.pre_feedforward_layernorm.register_forward_hook(keep_output)
    return layer.register_forward_hook(keep_output)


def _stop(module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
    raise _StopForwardError
