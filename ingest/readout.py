"""From a model's residual stream to its logits, read from its files without the rest of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from scopelake.errors import ModelError
from scopelake.ingest.decoder_rows import readout_need
from scopelake.ingest.model import TEXT_KEYS, ModelFiles

_NORM: Final = "model.norm.weight"


def read_readout_need(files: ModelFiles, device: torch.device) -> int:
    """Return the bytes of this process's memory that `read_readout` takes on a device.

    Raises:
        ModelError: a file is damaged, or the tensors are not there.
    """
    if device.type != "cpu":
        return 0
    shapes = _find(files, lambda file, key: file.get_slice(key).get_shape())
    vocab, d_model = shapes[_unembedding(files)]
    return readout_need(d_model, vocab)


def read_readout(files: ModelFiles, device: torch.device) -> torch.Tensor:
    """Return what `readout_of` does of the loaded model: [d_model, vocab], float32.

    Raises:
        ModelError: a file is damaged, or the tensors are not there.
    """
    found = _find(files, lambda file, key: file.get_tensor(key))
    gain: torch.Tensor = 1.0 + found[_NORM].to(device, torch.float32)
    unembedding: torch.Tensor = found[_unembedding(files)].to(device, torch.float32)
    return (unembedding * gain).T


def _unembedding(files: ModelFiles) -> str:
    config = json.loads((files.path / "config.json").read_text())
    text = config.get("text_config", config)
    is_tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    return "model.embed_tokens.weight" if is_tied else "lm_head.weight"


def _find(files: ModelFiles, read: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Return what `read` gives of an open file and the key of the two tensors, by name."""
    unembedding = _unembedding(files)
    found: dict[str, Any] = {}
    for path in sorted(files.path.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - it is no mapping
                    name = _text_name(key)
                    if name in (unembedding, _NORM):
                        found[name] = read(file, key)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"the unembedding of {files.name!r} was asked for; {path} cannot be read "
                f"({' '.join(str(error).split())}); check that its files are complete"
            ) from error
    if len(found) < 2:
        raise ModelError(
            f"the unembedding of {files.name!r} was asked for; {files.path} has of {unembedding} "
            f"and {_NORM} {', '.join(found) or 'neither'}; check that its files are "
            "complete"
        )
    return found


def _text_name(key: str) -> str:
    """Return the name in the text-only class; vision towers have norms of their own."""
    for pattern, replacement in TEXT_KEYS.items():
        key = re.sub(pattern, replacement, key)
    return key
