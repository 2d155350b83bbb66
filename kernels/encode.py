"""Encoding as everything here calls it: one seam, several implementations, equal firings.

    reference   the definition: plain torch, float32, a [n_tokens, width] array
    torch       the same a tile at a time, by torch's operators, on every device
    cpu         compiled: product, threshold and compaction in one pass
    triton      the same on a GPU

What is not chosen says why: `choose` returns the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from scopelake.errors import InvalidArgumentError
from scopelake.kernels import cpu, reference, streamed, tiled
from scopelake.kernels.checks import check_features, check_input
from scopelake.kernels.weights import EncoderWeights, Operands, SparseCodes

Implementation = Literal["auto", "reference", "torch", "cpu", "triton"]
Features = Sequence[int] | range | torch.Tensor | None
"""Features to encode with, ascending, each once: a list, or ``range(n)``, a Matryoshka prefix."""


@dataclass(frozen=True)
class Choice:
    """An implementation, and why it was chosen."""

    impl: Implementation
    reason: str


def choose(device: torch.device, impl: Implementation = "auto") -> Choice:
    """Return what encodes on a device.

    Raises:
        InvalidArgumentError: what was asked for by name is unknown, or cannot run there.
    """
    if impl not in get_args(Implementation):
        known = ", ".join(map(repr, get_args(Implementation)))
        raise InvalidArgumentError(
            f"impl {impl!r} was asked for; there are {known}; choose one of them"
        )
    if impl == "auto":
        fastest: Implementation = "cpu" if device.type == "cpu" else "triton"
        why_not = _why_not(fastest, device)
        if why_not is None:
            return Choice(fastest, f"the fastest on {device.type}")
        return Choice("torch", f"{fastest!r} cannot run: {why_not}")
    if (why_not := _why_not(impl, device)) is not None:
        raise InvalidArgumentError(
            f"impl {impl!r} was asked for on {device}; {why_not}; choose 'auto', which says what "
            "it takes instead"
        )
    return Choice(impl, "asked for")


@dataclass(frozen=True)
class Task:
    """Activations of a site, and a coder to encode them with."""

    x: torch.Tensor
    """[n_tokens, d_in], any float dtype."""
    coder: EncoderWeights
    """On the device of `x`; weights on the CPU come to another device slice by slice, so that they
    may be larger than its memory."""
    features: Features = None
    """Those to encode with, at a cost proportional to their number; None for all."""


def prepare(coder: EncoderWeights) -> EncoderWeights:
    """Return a coder with what `auto` makes of it, which is else made anew at each call.

    For Triton that is the encoder in bfloat16 besides: half as much memory again.
    """
    if choose(coder.w_enc.device).impl != "triton":
        return coder
    from scopelake.kernels import triton_encode  # needs triton

    return triton_encode.prepare(coder)


def encode(
    x: torch.Tensor,
    coder: EncoderWeights,
    impl: Implementation = "auto",
    features: Features = None,
) -> SparseCodes:
    """Encode `x` [n_tokens, d_in], any float dtype, to its firings.

    Args:
        x: activations of the coder's site.
        coder: its weights, on the device of `x`; those on the CPU come to another device slice by
            slice, so that they may be larger than its memory.
        impl: see `choose`.
        features: those to encode with, at a cost proportional to their number; None for all.

    Returns:
        The firings; features are numbered as in the whole coder.

    Raises:
        InvalidArgumentError: wrong shape, dtype or device, a value that is not finite, features
            that the coder does not have or that do not ascend, or an `impl` that cannot run.
    """
    return encode_all([Task(x, coder, features)], impl)[0]


def encode_all(tasks: Sequence[Task], impl: Implementation = "auto") -> list[SparseCodes]:
    """Encode with several coders, on one site or on several.

    Tasks that share an `x` have it checked and packed once. With ``triton`` the host waits for
    the device once for all, and once for the firings of each.

    Args:
        tasks: in any order.
        impl: see `choose`.

    Returns:
        The firings of each task.

    Raises:
        InvalidArgumentError: as in `encode`; nothing has been encoded.
    """
    sites: dict[int, list[Task]] = {}
    for task in tasks:
        sites.setdefault(id(task.x), []).append(task)
    for of_site in sites.values():
        check_input(of_site[0].x, [task.coder for task in of_site])
    operands = [Operands(t.x, t.coder, check_features(t.features, t.coder)) for t in tasks]
    groups: dict[tuple[str, torch.device], list[int]] = {}
    for index, task in enumerate(tasks):
        taken = choose(task.x.device, impl).impl
        is_far = task.coder.w_enc.device != task.x.device
        groups.setdefault(("from host" if is_far else taken, task.x.device), []).append(index)
    found: dict[int, SparseCodes] = {}
    for (how, _), indexes in groups.items():
        codes = _encode(how, [operands[i] for i in indexes], impl)
        found |= dict(zip(indexes, codes, strict=True))
    return [found[i] for i in range(len(tasks))]


def _encode(how: str, operands: list[Operands], impl: Implementation) -> list[SparseCodes]:
    if how == "cpu":
        return cpu.encode_all(operands)
    if how == "triton":
        from scopelake.kernels import triton_encode  # needs triton

        return triton_encode.encode_all(operands)
    if how == "from host":
        return [_encode_from_host(o, impl) for o in operands]
    one = reference.encode if how == "reference" else tiled.encode
    return [one(o.x, o.weights, o.features) for o in operands]


def _encode_from_host(operands: Operands, impl: Implementation) -> SparseCodes:
    x, coder, features = operands.x, operands.weights, operands.features
    if features is None:
        return streamed.encode(x, coder, lambda x, part: encode(x, part, impl))
    index = features.cpu()
    some = EncoderWeights(coder.w_enc[:, index], coder.b_enc[index], coder.threshold[index])
    codes = streamed.encode(x, some, lambda x, part: encode(x, part, impl))
    names = features.to(x.device, torch.int32)
    return SparseCodes(codes.indptr, names[codes.features.long()], codes.activations)


def _why_not(impl: Implementation, device: torch.device) -> str | None:
    """Return what keeps an implementation from running on a device."""
    if impl == "cpu":
        return cpu.WHY_NOT if device.type == "cpu" else f"it encodes on cpu, not on {device.type}"
    if impl == "triton":
        try:
            from scopelake.kernels.triton_encode import INTERPRETED, why_not
        except ImportError as error:
            return f"triton is not installed ({error}): pip install 'scopelake[gpu]'"
        where = ("cuda", "cpu") if INTERPRETED else ("cuda",)
        if device.type not in where:
            return f"it encodes on cuda, not on {device.type}"
        if device.type == "cuda" and torch.cuda.is_available():
            return why_not(device)
    return None
