"""What a mask that is written holds for each class: the values or colours of the user's own masks, or class numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

UINT8 = np.dtype(np.uint8)
Written = Sequence[int | str]
"""What stands for each class: values, or colours `#rrggbb`; class numbers where it is empty."""


@dataclass(frozen=True)
class MaskValues:
    """The value of each class; with a palette, values are class numbers, which the palette shows in colours."""

    dtype: np.dtype[Any] = UINT8
    table: Integer[np.ndarray, "classes"] | None = None
    """None where class numbers are written."""
    palette: UInt8[np.ndarray, "classes 3"] | None = None

    @classmethod
    def of(cls, written: Written) -> "MaskValues":
        """Values from 0 to 65535, or colours `#rrggbb`; none at all for class numbers."""
        if not written:
            return cls()
        if isinstance(written[0], str):
            return cls(palette=np.array([list(bytes.fromhex(str(colour)[1:])) for colour in written], np.uint8))
        dtype = np.min_scalar_type(max(map(int, written)))
        return cls(dtype, np.array(written, dtype))

    def drawn(self, labels: Integer[np.ndarray, "*space"]) -> Integer[np.ndarray, "*space"]:
        """Class numbers as the values that stand for them."""
        return labels.astype(self.dtype, copy=False) if self.table is None else self.table[labels]
