"""Real TensorRT-RTX engines of tiny graphs, built without a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.engine_request import library_version
from poss_export.contract import target_contract
from poss_export.engine_spec import (
    RTX_COMPUTE_CAPABILITIES,
    EngineOptions,
    EngineSpec,
    embedded_spec,
    target_profiles,
)
from poss_export.errors import BackendError, BundleError
from poss_export.exporters import engine_build as engines
from poss_export.exporters.engine_build import build_engine
from poss_export.exporters.engine_worker import Job
from poss_export.targets.checkpoint import open_target

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

CAPACITY = 48


@pytest.fixture
def one_engine(target_graph: Any, tiny_folder: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return one_engine(form="static", precision="fp16", ...): builds a tiny target's engine only."""

    def make(
        form: str = "static",
        precision: Any = "fp16",
        engine: Path | None = None,
        name: str = "llama",
        **spec: Any,
    ) -> Any:
        contract = target_contract(open_target(str(tiny_folder(name))).config, precision)
        wanted: dict[str, Any] = {
            "graph": "target",
            "flavour": "tensorrt-rtx",
            "version": library_version("tensorrt-rtx"),
            "precision": precision,
            "capacity": CAPACITY,
            "profiles": target_profiles(CAPACITY),
            "options": EngineOptions(("8.9",)),
            "graph_sha256": "0" * 64,
        }
        return build_engine(
            target_graph(name, form, precision),
            contract,
            EngineSpec(**{**wanted, **spec}),
            tmp_path / "target.engine" if engine is None else engine,
            timing_cache=None,
            progress=lambda *_: None,
        )

    return make


@pytest.mark.parametrize(
    "capability", ["8.9", *(pytest.param(one, marks=pytest.mark.slow) for one in ("8.6", "12.0"))]
)
def test_one_device_at_a_time(capability: str, one_engine: Callable[..., Any], tmp_path: Path) -> None:
    entry = one_engine(options=EngineOptions((capability,)))
    assert set(entry.attention.values()) == {"fused"}
    assert (tmp_path / "target.engine").stat().st_size > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("name", "attention"), [("gemma3", {"fused"}), ("qwen3_moe", {"fused"}), ("gemma2", set())]
)
def test_windows_and_experts_keep_the_fused_kernel_and_caps_need_none(
    name: str, precision: str, attention: set[str], one_engine: Callable[..., Any]
) -> None:
    assert set(one_engine(precision=precision, name=name).attention.values()) == attention


def test_the_known_devices_are_those_of_the_library() -> None:
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    assert [f"SM{name.replace('.', '')}" for name in RTX_COMPUTE_CAPABILITIES] == names


@pytest.mark.slow
def test_weights_may_be_streamed(one_engine: Callable[..., Any]) -> None:
    assert one_engine(options=EngineOptions(("8.9",), weight_streaming=True)).build_seconds > 0


def test_a_ladder_of_widths(one_engine: Callable[..., Any], tmp_path: Path) -> None:
    one_engine(engine=tmp_path / "one.engine", profiles=target_profiles(CAPACITY, (9,)))
    ladder = target_profiles(CAPACITY, (1, 2, 4, 9))
    assert set(one_engine(profiles=ladder).attention.values()) == {"fused"}
    embedded = embedded_spec(tmp_path / "target.engine")
    assert embedded is not None
    assert embedded.profiles == ladder
    assert (tmp_path / "target.engine").stat().st_size > (tmp_path / "one.engine").stat().st_size


def test_the_linter_comes_first(one_engine: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"TensorRT would refuse target\.onnx: Group"):
        one_engine(form="shared")
    assert not (tmp_path / "target.engine").exists()


def test_a_graph_that_is_not_its_contract(one_engine: Callable[..., Any], tiny_folder: Any) -> None:
    with pytest.raises(
        BundleError, match=r"input 'past_key_values\.0\.key' is float16 .*48.*, expected float16"
    ):
        one_engine(capacity=CAPACITY - 1)


def test_the_builders_own_reason_is_told(
    one_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 there is no fused attention, and the builder is not allowed to go without."""

    def strict(**values: Any) -> Job:
        return Job(**{**values, "decomposable": False})

    strict.__module__ = Job.__module__  # the program that the builder runs
    monkeypatch.setattr(engines, "Job", strict)
    with pytest.raises(
        BackendError,
        match=r"TensorRT-RTX 1\.\S+ could not build target.onnx: .*not supported by a dedicated kernel",
    ) as caught:
        one_engine(precision="fp32")
    assert "\n" not in str(caught.value)


def test_a_builder_that_dies(
    one_engine: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(BackendError, match="the builder died with status -9: out of luck"):
        one_engine()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_reported_by_the_builder(one_engine: Callable[..., Any]) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        one_engine(engine=Path("/dev/full"))
