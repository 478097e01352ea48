"""Graphs and options that ONNX Runtime, or the contract, refuses."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from poss_export.contract import target_contract
from poss_export.errors import BackendError, BundleError, InputError
from poss_export.runtime.sessions import load_graph
from poss_export.runtime.sessions.ort import OrtOptions, OrtTargetSession
from poss_export.targets.checkpoint import open_target
from tests.fixtures.ort_sessions import ONE_THREAD, MakeSession


def test_construction_reads_nothing(tmp_path: Path, tiny_folder: Any) -> None:
    contract = target_contract(open_target(str(tiny_folder("qwen3"))).config, "fp32")
    missing = OrtTargetSession(tmp_path / "none.onnx", contract, 8, ONE_THREAD)
    with pytest.raises(BackendError, match=r"ONNX Runtime refuses .*none\.onnx"), missing:
        pass


def test_damaged_graph(tmp_path: Path, make_session: MakeSession) -> None:
    session = make_session()
    session.graph = tmp_path / "target.onnx"
    session.graph.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="ONNX Runtime refuses"), session:
        pass


def test_graph_without_its_weights(tmp_path: Path, make_session: MakeSession) -> None:
    session = make_session()
    whole = session.graph
    session.graph = tmp_path / "target.onnx"
    session.graph.write_bytes(whole.read_bytes())
    with pytest.raises(BackendError, match="ONNX Runtime refuses"), session:
        pass


def test_graph_of_another_contract(make_session: MakeSession) -> None:
    with (
        pytest.raises(BundleError, match=r"target\.onnx: .*'past_key_values\.0\.key' is float16"),
        _with_contract(make_session("shared", "fp16"), make_session("shared")),
    ):
        pass


def _with_contract(session: OrtTargetSession, other: OrtTargetSession) -> OrtTargetSession:
    session.contract = other.contract
    return session


def test_static_graph_of_another_capacity(make_session: MakeSession) -> None:
    with pytest.raises(BundleError, match="expected float32"), make_session("static", capacity=32):
        pass
    with make_session("shared", capacity=32) as session:  # its caches take any size
        assert session.capacity == 32


@pytest.mark.parametrize("threads", [0, -2, 5000, 10**30])
def test_bad_threads(threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}"):
        OrtOptions(threads=threads)


def test_cuda_is_refused_where_there_is_none(make_session: MakeSession) -> None:
    session = make_session("static")
    session.options = OrtOptions("cuda")
    with pytest.raises(BackendError, match=r"no CUDA provider, only .*POSS_EXPORT_ONNXRUNTIME=gpu"), session:
        pass


def test_cuda_has_its_libraries_and_computes_in_float32(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime is asked for, on a machine that has a CUDA build but no driver."""
    asked = list[Any]()

    def preload() -> None:
        asked.append("libraries")
        print("Failed to load libcublas.so.13: no such file")  # noqa: T201 - as ONNX Runtime does

    class OnTheCpu:
        def __init__(self, graph: Any, settings: Any, providers: Any) -> None:
            asked.append(providers[0])

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheCpu)
    session = make_session("static")
    session.options = OrtOptions("cuda")
    with pytest.raises(BackendError, match=r"CUDA provider \(not found: libcublas.so.13\); check"), session:
        pass
    assert asked == ["libraries", ("CUDAExecutionProvider", {"use_tf32": "0"})]


def test_both_builds_of_onnxruntime_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_graph, "installed", lambda name: "1.31.0")
    with pytest.raises(BackendError, match="are both installed and overwrite each other"):
        load_graph._require_one_build()
