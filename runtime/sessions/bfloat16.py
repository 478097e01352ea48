"""bfloat16 on the host: numpy has no such type, so arrays hold the bits in uint16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of `bits`, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bits nearest to `values`, of two as near the even one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
