"""Quantised graphs: against numpy on one MatMul, in ONNX Runtime on whole graphs, and as files."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.config import TreeShape
from poss_export.drafters.make_round import make_round
from poss_export.errors import InputError
from poss_export.exporters.drafter import export_drafter
from poss_export.onnx_file import save_opened
from poss_export.quantisation.insertion import quantise
from poss_export.quantisation.sites import find_sites
from tests.fixtures.graphs import CAPACITY, call, initializers, random, run, session
from tests.fixtures.random_drafter import random_drafter, random_rows

INPUTS, OUTPUTS, WORDS = 64, 24, 40  # of the graph with one MatMul and a head
FORMS = [
    *((scheme, "qdq") for scheme in ("w8a8", "fp8", "int4")),
    *((scheme, "qoperator") for scheme in ("w8a8", "w8a16", "w8a24", "w8a32", "fp8", "int8", "int4")),
]
# Relative error of a whole graph's features, or its head's scores, with weights that are random numbers.
SEVERAL = ("w8a16", "w8a24", "w8a32")
NEAR = {
    "w8a8": 0.1,
    **dict.fromkeys(("w8a16", "w8a24", "w8a32"), 0.05),
    "fp8": 0.25,
    "int8": 0.1,
    "int4": 0.6,
}
FLOAT8 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)


def one_matmul(weight: NDArray[Any], tied: bool = True) -> onnx.ModelProto:
    """Return x @ weight as "y", and a head on it, whose table is also looked up where it is tied."""
    dtype = helper.np_dtype_to_tensor_dtype(weight.dtype)
    table = random(WORDS, weight.shape[1], seed=7).astype(weight.dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"], "matmul"),
        helper.make_node("Gemm", ["y", "table"], ["logits"], "head", transB=1),
        helper.make_node("Gather", ["table", "ids"], ["rows"], "lookup"),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, ["n", weight.shape[0]])]
    if tied:
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["ids"]))
    outputs = ["y", "logits", "rows"] if tied else ["y", "logits"]
    graph = helper.make_graph(
        nodes if tied else nodes[:2],
        "one",
        inputs,
        [helper.make_tensor_value_info(name, dtype, ["n", None]) for name in outputs],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def maxima(model: onnx.ModelProto) -> dict[str, float]:
    """Return the largest magnitude of every activation that a weight meets, in one call."""
    names = sorted({site.input for site in find_sites(model)})
    return {name: float(np.abs(value).max()) for name, value in zip(names, call(model, names), strict=True)}


@pytest.fixture(scope="session")
def graph(
    target_graph: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., onnx.ModelProto]:
    """Return graph(which, cache_form, precision): a tiny target or draft graph, to change as one likes."""

    @cache
    def draft_graph(cache_form: Any, precision: Any) -> Path:
        path = tmp_path_factory.mktemp("draft") / "draft.onnx"
        rows = random_rows(1)
        draft_round = make_round(random_drafter(3, 2), TreeShape(4, 3, 8), rows, rows)
        export_drafter(draft_round, path, cache_form=cache_form, precision=precision, capacity=CAPACITY)
        return path

    def load(which: str, cache_form: str, precision: str = "fp32") -> onnx.ModelProto:
        form = (cache_form, precision)
        return onnx.load(target_graph("llama", *form) if which == "target" else draft_graph(*form))

    return load


def divisible(model: onnx.ModelProto) -> list[str]:
    """Return the weights whose inputs divide into blocks of 32."""
    arrays = initializers(model)
    axis = {site.weight: int(site.role == "head") for site in find_sites(model)}
    return [name for name in axis if arrays[name].shape[axis[name]] % 32 == 0]


@pytest.mark.parametrize(
    ("scheme", "form"), [("w8a8", "qdq"), ("w8a8", "qoperator"), ("fp8", "qdq"), ("fp8", "qoperator")]
)
def test_a_matmul_is_what_numpy_computes(scheme: Any, form: Any) -> None:
    weight, x = random(INPUTS, OUTPUTS, seed=1), random(9, INPUTS, seed=2)
    model = one_matmul(weight)
    quantise(model, {"weight": scheme}, {"x": 1.5}, form)  # 1.5: much is clipped
    (y,) = run(model, ["y"], x=x, ids=np.array([0]))
    lowest, largest = {"w8a8": (-128, 127), "fp8": (-448, 448)}[scheme]

    def rounded(values: NDArray[Any], scale: Any) -> NDArray[Any]:
        small = np.clip(values / scale, lowest, largest)
        small = np.rint(small) if scheme == "w8a8" else small.astype(FLOAT8).astype(np.float32)
        return np.asarray(small * scale)

    expected = rounded(x, np.float32(1.5 / largest)) @ rounded(weight, np.abs(weight).max(0) / largest)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert np.abs(y - x @ weight).max() > 1e-2


@pytest.mark.parametrize(("scheme", "form"), [form for form in FORMS if form[0].startswith("int")])
def test_blocks_hold_the_weight(scheme: Any, form: Any) -> None:
    weight = random(INPUTS, OUTPUTS, seed=1) * np.geomspace(0.01, 10, OUTPUTS, dtype=np.float32)
    weight[:32] *= 100  # a block of its own
    model = one_matmul(weight)
    quantise(model, {"weight": scheme}, {}, form)
    (read,) = run(model, ["y"], x=np.eye(INPUTS, dtype=np.float32), ids=np.array([0]))
    blocks = np.abs(weight.reshape(2, 32, OUTPUTS))
    step = blocks.max(1, keepdims=True) / (127 if scheme == "int8" else 7)
    assert (np.abs(read - weight).reshape(blocks.shape) <= 1.01 * step).all()
    assert np.abs(read - weight).max() > 0


@pytest.mark.parametrize("which", ["target", "draft"])
def test_onnx_runtime_multiplies_in_integers(which: str, graph: Callable[..., Any], tmp_path: Path) -> None:
    model = graph(which, "shared")
    sites = find_sites(model)
    scales = {site.input: 8.0 for site in sites}
    quantise(model, {site.weight: "w8a8" for site in sites}, scales, "qoperator")
    session(model, tmp_path / "optimised.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["MatMulIntegerToFloat"] == len(sites)
    assert operators["QuantizeLinear"] == len(scales)
    assert operators["DequantizeLinear"] == 0


def test_onnx_runtime_multiplies_in_integers_where_activations_are_not_shared(tmp_path: Path) -> None:
    model = one_matmul(random(INPUTS, OUTPUTS, seed=1))
    quantise(model, {"weight": "w8a8"}, {"x": 3.0}, "qdq")
    session(model, tmp_path / "optimised.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["MatMulIntegerToFloat"] == 1
    assert operators["DequantizeLinear"] == 0


@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize(
    ("cache_form", "precision", "scheme", "form"),
    [
        *(("shared", "fp32", scheme, "qoperator") for scheme in ("w8a8", "fp8", "int8", "int4")),
        *(
            pytest.param("static", "fp32", scheme, "qdq", marks=pytest.mark.slow)
            for scheme in ("w8a8", "fp8", "int4")
        ),
        *(("static", "fp16", scheme, "qdq") for scheme in ("w8a8", "fp8", "int4")),
    ],
)
def test_whole_graphs_stay_near_the_float_ones(
    scheme: Any, form: Any, which: str, cache_form: str, precision: str, graph: Callable[..., Any]
) -> None:
    model = graph(which, cache_form, precision)
    head = next(site for site in find_sites(model) if site.role == "head")
    wanted = [head.input, head.output]
    before, scales = call(model, wanted), maxima(model)
    quantise(model, dict.fromkeys(divisible(model), scheme), scales, form)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 24)]
    onnx.checker.check_model(model)
    for quantised, exact in zip(call(model, wanted), before, strict=True):
        error = np.linalg.norm(quantised - exact) / np.linalg.norm(exact)
        assert 0 < error < NEAR[scheme]


def test_shared_inputs_and_weights_are_rounded_once(graph: Callable[..., Any]) -> None:
    model = graph("draft", "static", "fp16")
    sites = find_sites(model)
    inputs, weights = {site.input for site in sites}, {site.weight for site in sites}
    assert len(inputs) < len(sites)
    assert len(weights) < len(sites)
    quantise(model, dict.fromkeys(weights, "w8a8"), dict.fromkeys(inputs, 8.0), "qdq")
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["QuantizeLinear"] == len(inputs)
    assert operators["DequantizeLinear"] == len(inputs) + len(weights)
    assert find_sites(model) == []
    assert not any(node.op_type == "Gemm" for node in model.graph.node)


def test_a_shared_weight_has_its_blocks_once(graph: Callable[..., Any]) -> None:
    model = graph("draft", "shared")
    sites = find_sites(model)
    quantise(model, {site.weight: "int4" for site in sites}, {}, "qoperator")
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len({*names})
    readers = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert [(node.name, node.input[0], node.output[0]) for node in readers] == [
        (site.node, site.input, site.output) for site in sites
    ]
    assert len({node.input[1] for node in readers}) == len({site.weight for site in sites})


@pytest.mark.parametrize(("scheme", "form"), FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_gets_a_copy_of_its_own(tied: bool, scheme: Any, form: Any) -> None:
    model = one_matmul(random(INPUTS, 64, seed=1), tied)
    before = initializers(model)
    feed = {"x": random(9, INPUTS, seed=2), **({"ids": np.array([3, 1])} if tied else {})}
    (exact,) = run(model, ["logits"], **feed)
    quantise(model, {"table": scheme}, {"y": 30.0}, form)
    (logits,) = run(model, ["logits"], **feed)
    assert 0 < np.linalg.norm(logits - exact) < NEAR[scheme] * np.linalg.norm(exact)
    after = initializers(model)
    np.testing.assert_array_equal(after["weight"], before["weight"])
    assert ("table" in after) == tied
    if tied:
        np.testing.assert_array_equal(after["table"], before["table"])
        np.testing.assert_array_equal(run(model, ["rows"], **feed)[0], before["table"][[3, 1]])


def test_weights_that_are_not_named_stay(graph: Callable[..., Any]) -> None:
    model = graph("target", "static")
    before = initializers(model)
    chosen: Mapping[str, Any] = {
        "decoder.layers.0.qkv.weight": "w8a8",
        "decoder.layers.1.mlp.down.weight": "int4",
    }
    quantise(model, chosen, maxima(model), "qdq")
    after = initializers(model)
    assert before.keys() - after.keys() == chosen.keys()
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize(("scheme", "form"), FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_channels_of_zeros_have_a_scale(dtype: Any, scheme: Any, form: Any) -> None:
    weight = random(INPUTS, OUTPUTS, seed=1).astype(dtype)
    weight[:, 3], weight[:32, 5], weight[:, 7] = 0, 0, 1e-7
    model = one_matmul(weight)
    if scheme in SEVERAL and dtype == np.float16:
        with pytest.raises(InputError, match="for float32 graphs"):
            quantise(model, {"weight": scheme}, {"x": 3.0}, form)
        return
    quantise(model, {"weight": scheme}, {"x": 3.0}, form)
    (y,) = run(model, ["y"], x=random(9, INPUTS, seed=2).astype(dtype), ids=np.array([0]))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[:, 3], 0, atol=1e-3)
    scales = [array for name, array in initializers(model).items() if "scale" in name]
    assert scales
    for scale in scales:
        assert scale.dtype == dtype
        assert scale.all()
        assert np.isfinite(1 / scale).all() or form == "qoperator"  # ONNX Runtime's own


@pytest.mark.parametrize("largest", [float("nan"), float("inf"), 0.0, -1.0, None])
@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
def test_a_range_that_is_none_is_refused(scheme: Any, largest: float | None) -> None:
    model = one_matmul(random(INPUTS, OUTPUTS, seed=1))
    before = model.SerializeToString()
    scales = {} if largest is None else {"x": largest}
    with pytest.raises(InputError, match=f"magnitude of activation 'x' is {largest}, expected a positive"):
        quantise(model, {"weight": scheme}, scales, "qdq")
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("inputs", "schemes", "message"),
    [
        (64, {"weight": "int8"}, "weight 'weight': INT8 weights .* are for ONNX Runtime only; .* int4 or w8"),
        (80, {"weight": "int4"}, "weight 'weight' has 80 inputs, no multiple of 32"),
        (64, {"weight": "w8a16"}, "weight 'weight': activations of several digits .* elsewhere choose w8a8"),
        (64, {"other": "w8a8"}, "does not multiply by 'other': quantise weights that find_sites names"),
    ],
)
def test_what_a_graph_cannot_have_is_refused(inputs: int, schemes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantise(one_matmul(random(inputs, OUTPUTS, seed=1)), schemes, {"x": 1.0}, "qdq")


def test_files_are_aligned_and_the_same_every_time(graph: Callable[..., Any], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        model = graph("target", "static")
        scales = {site.input: 8.0 for site in find_sites(model)}
        quantise(model, {site.weight: "w8a8" for site in find_sites(model)}, scales, "qdq")
        (tmp_path / folder).mkdir()
        save_opened(model, tmp_path / folder / "target.onnx")
    for name in ("target.onnx", "target.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"target.onnx", "target.onnx.data"}
    stored = onnx.load(tmp_path / "one" / "target.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        size = numpy_helper.to_array(initializer(model, tensor.name)).nbytes
        assert bool(where) == (size > 1024)
        assert int(where.get("offset", 0)) % 4096 == 0
    loaded = onnx.load(tmp_path / "one" / "target.onnx")
    assert loaded.ir_version == model.ir_version
    for ours, theirs in zip(call(model, ["logits"]), call(loaded, ["logits"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found
