"""The CUDA driver's failures are told."""

import ctypes

import pytest

from poss_export.errors import BackendError
from poss_export.runtime.sessions import cuda


def test_driver_failure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def cuCtxSynchronize() -> int:
            return 700

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    with pytest.raises(BackendError, match="cuCtxSynchronize failed with status 700"):
        cuda.call("cuCtxSynchronize")
