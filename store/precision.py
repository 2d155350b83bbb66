"""Rounding of activations to fewer mantissa bits, with a bound of the error."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from scopelake.errors import InvalidArgumentError

MANTISSA_BITS: Final = 23
"""Of float32; keeping all of them is lossless."""


def relative_error(bits: int) -> float:
    """Return the bound of the relative error of rounding to `bits` mantissa bits.

    It holds for normal numbers (magnitude from 1.2e-38); 0.0 for 23 bits, which change nothing.

    Raises:
        InvalidArgumentError: `bits` is not in 1..23.
    """
    if not 1 <= bits <= MANTISSA_BITS:
        raise InvalidArgumentError(
            f"activation_bits {bits} was asked for; float32 has mantissa bits 1 to "
            f"{MANTISSA_BITS}; choose one of these"
        )
    return 0.0 if bits == MANTISSA_BITS else 2.0 ** -(bits + 1)


def round_mantissa(x: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Round float32 values, any shape, to `bits` mantissa bits, ties to even; a new array.

    Infinities and NaNs stay what they are; a value that rounds past the largest number becomes
    infinite, as in every other rounding.

    Raises:
        InvalidArgumentError: `bits` is not in 1..23.
    """
    relative_error(bits)
    values = np.array(x, dtype=np.float32, copy=True, order="C")
    if bits == MANTISSA_BITS:
        return values
    drop = np.uint32(MANTISSA_BITS - bits)
    raw = values.view(np.uint32)
    special = ~np.isfinite(values)
    kept = raw[special]
    # Half of the last kept bit less one, plus that bit itself: ties go to the even neighbour.
    odd = (raw >> drop) & np.uint32(1)
    raw += odd
    raw += np.uint32((1 << (int(drop) - 1)) - 1)
    raw &= ~np.uint32((1 << int(drop)) - 1)
    raw[special] = kept
    return values
