"""Engines that are asked for: what is refused before anything is built."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling import engine_request
from poss_export.bundling.engine_request import request_engines
from poss_export.engine_spec import EngineOptions
from poss_export.errors import BackendError, InputError
from poss_export.runtime.sessions.cuda import has_driver


def test_tables_of_smaller_engines_are_not_refitted() -> None:
    with pytest.raises(InputError, match="several capacities cannot be built without weights"):
        request_engines("tensorrt-rtx", EngineOptions(("8.9",), strip_weights=True), (32,))


def test_sizes_come_in_any_order() -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    options = EngineOptions(("8.9",))
    request = request_engines("tensorrt-rtx", options, (64, 32, 64), widths=(8, 2, 8, 4))
    assert (request.capacities, request.widths) == ((32, 64), (2, 4, 8))


@pytest.mark.parametrize("slots", [0, 3, 128])
def test_slots_are_a_power_of_two(slots: int) -> None:
    with pytest.raises(InputError, match=f"engine slots is {slots}; it must be a power of two, 1 to 64"):
        request_engines("tensorrt-rtx", EngineOptions(("8.9",)), slots=slots)


@pytest.mark.parametrize(
    ("flavour", "options", "message"),
    [
        (
            "tensorrt-rtx",
            EngineOptions(),
            "no compute capability; name one of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1",
        ),
        ("tensorrt-rtx", EngineOptions(("9.0",)), "compute capability '9.0' is unknown to TensorRT-RTX: use"),
        ("tensorrt-rtx", EngineOptions(("8.9",), optimization_level=3), "has no option optimization level"),
        (
            "tensorrt-rtx",
            EngineOptions(("8.9",), version_compatible=True),
            "no option version compatible: its",
        ),
        (
            "tensorrt-rtx",
            EngineOptions(("8.9",), hardware_compatible=True),
            "name the compute capability of every device instead",
        ),
        ("tensorrt", EngineOptions(("8.9",)), "TensorRT has no option compute capability: it builds for the"),
        (
            "tensorrt",
            EngineOptions(optimization_level=6),
            "optimization level is 6; TensorRT has the levels 0",
        ),
    ],
)
def test_options_that_a_flavour_does_not_have(flavour: Any, options: EngineOptions, message: str) -> None:
    with pytest.raises(InputError) as caught:
        request_engines(flavour, options)
    assert message in str(caught.value)


def test_a_timing_cache_is_tensorrts() -> None:
    with pytest.raises(InputError, match="TensorRT-RTX has no timing cache"):
        request_engines("tensorrt-rtx", EngineOptions(("8.9",)), (), Path("some.cache"))


@pytest.mark.parametrize("package", ["tensorrt", "polygraphy"])
def test_a_library_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return "11.0" if name == "tensorrt" else installed(name)

    monkeypatch.setattr(engine_request, "version", version)
    with pytest.raises(BackendError, match=rf"needs {package}, which is not .*'poss-export\[tensorrt\]'"):
        request_engines("tensorrt", EngineOptions())


def test_tensorrt_needs_the_device_it_builds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_request, "library_version", lambda flavour: "11.0")
    if has_driver():
        pytest.skip("there is a GPU driver")
    with pytest.raises(BackendError, match="no CUDA driver on this machine"):
        request_engines("tensorrt", EngineOptions())
    with pytest.raises(BackendError, match="needs a GPU driver to build engines without weights"):
        request_engines("tensorrt-rtx", EngineOptions(("8.9",), strip_weights=True))
