"""bfloat16 for zarr-python; importing this module registers it.

``bfloat16`` is a registered extension data type of Zarr v3: other readers (tensorstore, zarrs)
know it without any help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import ml_dtypes
import numpy as np
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.common import DataTypeValidationError
from zarr.core.dtype.npy.float import BaseFloat
from zarr.core.dtype.wrapper import TBaseDType

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
"""numpy's dtype of stored dense activations."""


@dataclass(frozen=True, kw_only=True)
class ZarrBFloat16(BaseFloat[Any, Any]):
    """The Zarr v3 data type ``bfloat16``, two bytes."""

    dtype_cls = type(BFLOAT16)
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_native_dtype(cls, dtype: TBaseDType) -> Self:
        """Return the data type of a numpy dtype.

        Raises:
            DataTypeValidationError: it is not bfloat16.
        """
        if dtype != BFLOAT16:
            raise DataTypeValidationError(f"dtype {dtype} was given; this is bfloat16")
        return cls()

    def to_native_dtype(self) -> np.dtype[Any]:
        """Return numpy's bfloat16, which exists in the machine's byte order only."""
        native: np.dtype[Any] = BFLOAT16
        return native

    @property
    def item_size(self) -> int:
        """Return the bytes of a value."""
        return 2


data_type_registry.register(ZarrBFloat16._zarr_v3_name, ZarrBFloat16)
