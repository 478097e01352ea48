"""Values to bits and back."""

import numpy as np

from poss_export.runtime.sessions import bfloat16


def test_bfloat16_bits() -> None:
    values = np.array([1.0, -2.5, 3.14159, 1e38, 0.0, np.inf, np.nan, 1.00390625], np.float32)
    bits = bfloat16.narrow(values)
    assert bits.dtype == np.uint16
    back = bfloat16.widen(bits)
    np.testing.assert_allclose(back[:4], values[:4], rtol=2**-8)
    assert (back[4], back[5], back[7]) == (0.0, np.inf, 1.0)  # of two as near, the even one
    assert np.isnan(back[6])
    np.testing.assert_array_equal(bfloat16.narrow(back[:6]), bits[:6])
