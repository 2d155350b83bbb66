"""From a model's residual stream to its logits, read from its files without the rest of it."""

from __future__ import annotations

import json
import re

import torch
from safetensors import SafetensorError, safe_open

from scopelake.errors import ModelError
from scopelake.ingest.model import TEXT_KEYS, ModelFiles


def read_readout(files: ModelFiles, device: torch.device) -> torch.Tensor:
    """Return what `readout_of` does of the loaded model: [d_model, vocab], float32.

    Raises:
        ModelError: a file is damaged, or the tensors are not there.
    """
    config = json.loads((files.path / "config.json").read_text())
    text = config.get("text_config", config)
    is_tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    unembedding = "model.embed_tokens.weight" if is_tied else "lm_head.weight"
    found: dict[str, torch.Tensor] = {}
    for path in sorted(files.path.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - it is no mapping
                    name = _text_name(key)
                    if name in (unembedding, "model.norm.weight"):
                        found[name] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"the unembedding of {files.name!r} was asked for; {path} cannot be read "
                f"({' '.join(str(error).split())}); check that its files are complete"
            ) from error
    if len(found) < 2:
        raise ModelError(
            f"the unembedding of {files.name!r} was asked for; {files.path} has of {unembedding} "
            f"and model.norm.weight {', '.join(found) or 'neither'}; check that its files are "
            "complete"
        )
    gain = 1.0 + found["model.norm.weight"].to(device, torch.float32)
    return (found[unembedding].to(device, torch.float32) * gain).T


def _text_name(key: str) -> str:
    """Return the name in the text-only class; vision towers have norms of their own."""
    for pattern, replacement in TEXT_KEYS.items():
        key = re.sub(pattern, replacement, key)
    return key
