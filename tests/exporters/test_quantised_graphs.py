"""Quantised static graphs: what the linter, TensorRT-RTX's parser and its builder make of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

from poss_export.bundling.engine_request import library_version
from poss_export.config import TreeShape
from poss_export.contract import GraphContract, draft_contract, target_contract
from poss_export.drafters.make_round import make_round
from poss_export.engine_spec import (
    EngineEntry,
    EngineOptions,
    EngineSpec,
    draft_profiles,
    embedded_spec,
    target_profiles,
)
from poss_export.errors import BackendError
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.engine_build import build_engine
from poss_export.exporters.linter import require_clean
from poss_export.onnx_file import save_opened
from poss_export.quantisation.insertion import quantise
from poss_export.quantisation.sites import find_sites
from poss_export.targets.checkpoint import open_target
from tests.fixtures.random_drafter import random_drafter, random_rows

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

CAPACITY = 48
TREE = TreeShape(4, 3, 8)
PROFILES = {"target": target_profiles(CAPACITY, (9,)), "draft": draft_profiles(CAPACITY, 5)}


@pytest.fixture(scope="module")
def quantised(
    target_graph: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return quantised(graph, scheme): the file of a tiny fp16 graph; weights without whole blocks stay."""

    @cache
    def draft_graph() -> Path:
        path, rows = tmp_path_factory.mktemp("draft") / "draft.onnx", random_rows(1)
        draft_round = make_round(random_drafter(3, 2), TREE, rows, rows)
        export_drafter(draft_round, path, cache_form="static", precision="fp16", capacity=CAPACITY)
        return path

    @cache
    def write(graph: str, scheme: Any) -> Path:
        model = onnx.load(target_graph("llama", "static", "fp16") if graph == "target" else draft_graph())
        dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        sites = [site for site in find_sites(model) if dims[site.weight][site.role == "head"] % 32 == 0]
        schemes = {site.weight: scheme for site in sites}
        quantise(model, schemes, {site.input: 8.0 for site in sites}, "qdq")
        path: Path = tmp_path_factory.mktemp(scheme) / f"{graph}.onnx"
        save_opened(model, path)
        return path

    return write


@pytest.fixture(scope="module")
def contracts(tiny_folder: Callable[[str], Path]) -> dict[str, GraphContract]:
    config = open_target(str(tiny_folder("llama"))).config
    draft = draft_contract(random_drafter(3, 2).config, TREE, "fp16")
    return {"target": target_contract(config, "fp16"), "draft": draft}


def build(path: Path, contract: GraphContract, engine: Path, *devices: str) -> EngineEntry:
    graph: Any = path.stem
    spec = EngineSpec(
        graph=graph,
        flavour="tensorrt-rtx",
        version=library_version("tensorrt-rtx"),
        precision="fp16",
        capacity=CAPACITY,
        profiles=PROFILES[graph],
        options=EngineOptions(devices),
        graph_sha256="0" * 64,
    )
    return build_engine(path, contract, spec, engine, timing_cache=None, progress=lambda *_: None)


@pytest.mark.parametrize("scheme", ["w8a8", "fp8", "int4"])
@pytest.mark.parametrize("graph", ["target", "draft"])
def test_engines_of_quantised_graphs(
    graph: str,
    scheme: str,
    quantised: Callable[..., Path],
    contracts: dict[str, GraphContract],
    tmp_path: Path,
) -> None:
    path = quantised(graph, scheme)
    require_clean(path)
    entry = build(path, contracts[graph], tmp_path / "some.engine", "8.9", "12.0")
    # What `check_engine` demands when a bundle is opened.
    assert list(entry.attention.values()) == (2 * ["fused"] if graph == "target" else [])
    assert entry.aliases == contracts[graph].aliases
    assert embedded_spec(tmp_path / "some.engine") == entry.spec


@pytest.mark.parametrize(
    ("scheme", "device", "message"),
    [
        ("fp8", "8.6", "breaks rule device .*: float8_e4m3fn needs 8.9, the engine shall run on 8.6; choose"),
        ("int4", "7.5", "breaks rule device .*: int4 needs 8.0, the engine shall run on 7.5; choose"),
    ],
)
def test_devices_without_the_type_are_refused(
    scheme: str,
    device: str,
    message: str,
    quantised: Callable[..., Path],
    contracts: dict[str, GraphContract],
    tmp_path: Path,
) -> None:
    with pytest.raises(BackendError, match=message):
        build(quantised("target", scheme), contracts["target"], tmp_path / "some.engine", "8.9", device)
    assert not list(tmp_path.iterdir())


def test_blocks_of_onnx_runtime_are_refused(target_graph: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(target_graph("llama", "static", "fp16"))
    quantise(model, {"decoder.layers.0.qkv.weight": "int8"}, {}, "qoperator")
    save_opened(model, tmp_path / "target.onnx")
    with pytest.raises(BackendError, match=r"MatMulNBits .* breaks rule domain"):
        require_clean(tmp_path / "target.onnx")
