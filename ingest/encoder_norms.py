"""How long the encoder vector of each feature is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scopelake.ingest.coder_weights import encoder_parts
from scopelake.ingest.coders import CoderFiles


def encoder_norms(coder: CoderFiles, device: torch.device) -> npt.NDArray[np.float32]:
    """Return the norm of each feature's column of ``w_enc``, float32 [width].

    The encoder is read from its files a slice at a time, once; squares are summed in float64.

    Args:
        coder: which.
        device: where it is computed.

    Raises:
        CoderFileError: a value is not finite.
    """
    norms = np.empty((len(coder.params), coder.features_per_layer), np.float32)
    for layer in range(len(coder.params)):
        squares = torch.zeros(coder.features_per_layer, dtype=torch.float64, device=device)
        for rows in encoder_parts(coder, layer, device):
            squares += torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64).square()
        norms[layer] = squares.sqrt().float().cpu().numpy()
    return norms.reshape(-1)
