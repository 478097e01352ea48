"""What the CUDA driver lacks or refuses is told."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from poss_export.errors import BackendError
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sessions import cuda


def test_driver_failure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def cuCtxSynchronize() -> int:
            return 700

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    with pytest.raises(BackendError, match="cuCtxSynchronize failed with status 700"):
        cuda.call("cuCtxSynchronize")


def test_a_thread_gets_the_device_when_it_first_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's thread uses sessions that another one loaded."""
    asked = list[str]()

    class Library:
        def __getattr__(self, function: str) -> Callable[..., int]:
            def run(*_: object) -> int:
                asked.append(function)
                return 201 if function == "cuCtxSynchronize" and "cuCtxSetCurrent" not in asked else 0

            return run

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    cuda.call("cuCtxSynchronize")
    own = ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert asked == ["cuCtxSynchronize", *own, "cuCtxSynchronize"]


@pytest.mark.skipif(cuda.has_driver(), reason="there is a GPU driver")
def test_without_a_gpu_there_is_one_message(engine_bundle: Callable[..., Path]) -> None:
    for precision in ("fp16", "bf16"):
        with pytest.raises(BackendError) as caught:
            open_bundle(engine_bundle(precision), backend="tensorrt-rtx")
        assert str(caught.value).startswith("no CUDA driver on this machine (libcuda.so.1)")
