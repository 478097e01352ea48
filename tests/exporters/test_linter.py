"""The operator linter: planted violations, our own graphs, and what the real parser says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from poss_export.config import TreeShape
from poss_export.drafters.make_round import make_round
from poss_export.engine_spec import RTX_COMPUTE_CAPABILITIES
from poss_export.errors import BackendError, InputError
from poss_export.exporters import rules as operator_rules
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.linter import lint, lint_model, require_clean
from tests.fixtures.random_drafter import random_drafter, random_rows

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

CACHE = (1, 2, 16, 8)  # batch, heads, capacity, head size
NEW = (1, 2, 3, 8)


def attention_model(**changes: Any) -> onnx.ModelProto:
    """Return a cache update and an attention that keep every rule, but for what `changes` says.

    Keys of `changes`: an attribute of a node as "node.attribute", its inputs or outputs as "node.inputs",
    "node.outputs", the shape or type of an input by its name, "opset", or "more" nodes.
    """
    shapes = {"query": NEW, "new": NEW, "cache": CACHE, "index": (1,), "mask": (1, 1, 3, 16), **changes}
    types = {"mask": TensorProto.BOOL, "index": TensorProto.INT64, **changes.get("types", {})}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT16), shapes[name])
        for name in ("query", "new", "cache", "index", "mask", *changes.get("inputs", ()))
    ]
    scatter = helper.make_node(
        "TensorScatter",
        ["cache", "new", "index"],
        changes.get("scatter.outputs", ["present"]),
        axis=changes.get("scatter.axis", -2),
        mode=changes.get("scatter.mode", "linear"),
    )
    attend = helper.make_node(
        "Attention",
        changes.get("attention.inputs", ["query", "present", "present", "mask"]),
        changes.get("attention.outputs", ["mixed"]),
        is_causal=changes.get("attention.is_causal", 0),
        softcap=changes.get("attention.softcap", 0.0),
    )
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
        for name in changes.get("outputs", ("mixed", "present"))
    ]
    nodes = [*changes.get("before", ()), scatter, attend, *changes.get("more", ())]
    graph = helper.make_graph(nodes, "test", inputs, outputs, changes.get("constants", []))
    opsets = [helper.make_opsetid("", changes.get("opset", 24)), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(operator: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, ["other"], **attributes)


def constant(name: str, value: Any, dtype: type[np.generic] = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def in_a_branch() -> onnx.NodeProto:
    attend = helper.make_node("Attention", ["query", "present", "present", "mask"], ["branch"])
    branch = helper.make_graph(
        [attend], "branch", [], [helper.make_tensor_value_info("branch", TensorProto.FLOAT16, None)]
    )
    return node("If", ["condition"], then_branch=branch, else_branch=branch)


def int4_weight(rows: int, block: int, scale: float = 0.1) -> list[onnx.TensorProto]:
    scales = np.full((-(-rows // block), 8), scale)
    weight = helper.make_tensor("weight", TensorProto.INT4, (rows, 8), [1] * (8 * rows))
    return [weight, constant("scales", scales, np.float16)]


SCALE = constant("scale", 0.1, np.float16)
INT8 = node("QuantizeLinear", ["query", "scale"], output_dtype=TensorProto.INT8)
FLOAT8 = node("QuantizeLinear", ["query", "scale"], output_dtype=TensorProto.FLOAT8E4M3FN)
INT4 = node("DequantizeLinear", ["weight", "scales"], axis=0, block_size=32)
PLANTED: dict[str, dict[str, Any]] = {
    "opset": {"opset": 25},
    "domain": {"more": [node("GroupQueryAttention", ["query"], domain="com.microsoft")]},
    "operator": {"more": [node("DynamicQuantizeLinear", ["query"])]},
    "attention-rank": {"mask": (3, 16)},
    "attention-outputs": {"attention.outputs": ["mixed", "", "", "scores"]},
    "attention-mask": {"attention.is_causal": 1},
    "attention-inputs": {
        "attention.inputs": ["query", "present", "present", "mask", "", "", "index"],
    },
    "attention-softcap": {"attention.softcap": 30.0},
    "attention-branch": {
        "before": [],
        "more": [in_a_branch()],
        "constants": [constant("condition", True, np.bool_)],
    },
    "cache-capacity": {"cache": (1, 2, "capacity", 8)},
    "cache-mode": {"scatter.mode": "circular"},
    "cache-dtype": {"types": {"cache": TensorProto.DOUBLE, "new": TensorProto.DOUBLE}},
    "cache-alias": {"outputs": ("mixed",)},
    "positions": {
        "inputs": ["cos", "sin", "ids"],
        "cos": (16, 4),
        "sin": (16, 4),
        "ids": (1, 3),
        "types": {"ids": TensorProto.INT32},
        "more": [node("RotaryEmbedding", ["query", "cos", "sin", "ids"])],
    },
    "topk": {
        "more": [helper.make_node("TopK", ["query", "k"], ["values", "indices"])],
        "constants": [constant("k", [3841])],
    },
    "scatter": {"more": [node("ScatterND", ["query", "where", "query"], reduction="add")]},
    "zero-point": {
        "more": [node("QuantizeLinear", ["query", "scale", "zero"])],
        "constants": [SCALE, constant("zero", 3, np.int8)],
    },
    "quantised-type": {"more": [node("QuantizeLinear", ["query", "scale"])], "constants": [SCALE]},  # uint8
    "device": {"more": [FLOAT8], "constants": [SCALE]},
    "scale": {"more": [INT8], "constants": [constant("scale", 0.0, np.float16)]},
    "blocks": {"more": [INT4], "constants": [*int4_weight(rows=48, block=32)]},
}
DEVICES = ("8.6", "8.9")


def parser_errors(path: Path) -> list[str]:
    """Return what TensorRT-RTX's own parser says against a file."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parser.parse_from_file(str(path))
    return [parser.get_error(i).desc() for i in range(parser.num_errors)]


def test_every_rule_has_a_planted_violation() -> None:
    assert PLANTED.keys() == operator_rules.RULES.keys()


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_found_and_nothing_else(rule: str) -> None:
    violations = lint_model(attention_model(**PLANTED[rule]), DEVICES)
    assert [violation.rule for violation in violations] in ([rule], [rule, rule])  # both branches of an If
    text = str(violations[0])
    assert violations[0].node in text
    assert operator_rules.RULES[rule].remedy in text


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("attention-mask", {"attention.inputs": ["query", "present", "present"]}),
        ("cache-mode", {"scatter.axis": 1}),
        (
            "zero-point",
            {"inputs": ["zero"], "zero": (), "types": {"zero": TensorProto.INT8}, "constants": [SCALE]}
            | {"more": [node("QuantizeLinear", ["query", "scale", "zero"])]},
        ),
        (
            "quantised-type",
            {"more": [node("QuantizeLinear", ["query", "scale"], output_dtype=TensorProto.INT4)]}
            | {"constants": [SCALE]},
        ),
        (
            "quantised-type",
            {"more": [node("QuantizeLinear", ["query", "scale", "zero"])]}
            | {"constants": [SCALE, constant("zero", 0, np.uint8)]},
        ),
        ("scale", {"more": [INT4], "constants": int4_weight(64, 32, scale=-0.1)}),
    ],
)
def test_a_rule_is_broken_in_more_than_one_way(rule: str, changes: dict[str, Any]) -> None:
    assert [violation.rule for violation in lint_model(attention_model(**changes))] == [rule]


@pytest.mark.parametrize(
    ("more", "constants", "least"),
    [
        (INT8, [SCALE], (7, 5)),
        (INT4, int4_weight(64, 32), (8, 0)),
        (FLOAT8, [SCALE], (8, 9)),
        (node("QuantizeLinear", ["query", "scale"], output_dtype=TensorProto.FLOAT4E2M1), [SCALE], (10, 0)),
    ],
    ids=["int8", "int4", "float8", "float4"],
)
def test_devices_have_the_types(
    more: onnx.NodeProto, constants: list[onnx.TensorProto], least: tuple[int, int]
) -> None:
    model = attention_model(more=[more], constants=constants)
    assert lint_model(model) == []
    for device in RTX_COMPUTE_CAPABILITIES:
        known = tuple(map(int, device.split("."))) >= least
        assert [found.rule for found in lint_model(model, (device,))] == ([] if known else ["device"])


def test_a_cache_that_is_no_graph_input_is_found() -> None:
    before = helper.make_node("Identity", ["cache"], ["copied"])
    model = attention_model(before=[before])
    model.graph.node[1].input[0] = "copied"
    assert [violation.rule for violation in lint_model(model)] == ["cache-alias"]


def test_a_graph_that_keeps_all_rules_passes_the_linter_and_the_parser(tmp_path: Path) -> None:
    model = attention_model()
    assert lint_model(model) == []
    onnx.save(model, tmp_path / "good.onnx")
    assert parser_errors(tmp_path / "good.onnx") == []


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("windows", "gemma", "gemma3", "qwen3_moe")),
    ],
)
def test_our_static_targets_pass_the_linter_and_the_parser(
    name: str, precision: str, target_graph: Callable[..., Path]
) -> None:
    path = target_graph(name, "static", precision)
    require_clean(path)
    assert parser_errors(path) == []


def test_our_static_target_with_taps_passes(target_graph: Callable[..., Path]) -> None:
    path = target_graph("llama", "static", "fp32", (0, 1))
    require_clean(path)
    assert parser_errors(path) == []


@pytest.mark.parametrize(
    ("specialists", "positions", "choices"),
    [
        pytest.param(1, None, {}, marks=pytest.mark.slow),
        (3, 2, {}),
        (1, None, {"fusion": "gated", "alignment": "split"}),
        pytest.param(1, None, {"drafting": "parallel", "num_masks": 3}, marks=pytest.mark.slow),
        (2, 1, {"drafting": "parallel", "num_masks": 3, "num_layers": 2, "mask_feature": "repeat_last"}),
        (1, None, {"fusion": "taps", "tap_norm": "each", "qk_norm": True, "own_embeddings": True}),
    ],
)
def test_our_static_drafters_pass_the_linter_and_the_parser(
    specialists: int, positions: int | None, choices: dict[str, Any], tmp_path: Path
) -> None:
    path, rows = tmp_path / "draft.onnx", random_rows(1)
    draft_round = make_round(
        random_drafter(specialists, positions, **choices), TreeShape(4, 3, 8), rows, rows
    )
    export_drafter(draft_round, path, cache_form="static", precision="fp16", capacity=32)
    require_clean(path)
    assert parser_errors(path) == []


def test_our_shared_targets_do_not_pass(target_graph: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match=r"GroupQueryAttention .* breaks rule domain .*'static'"):
        require_clean(target_graph("llama", "shared"))


def test_the_operators_are_those_of_the_real_parser() -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in known if parser.supports_operator(name)} == operator_rules.OPERATORS


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_file_that_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"some\.onnx' cannot be read as ONNX .* give an \.onnx file"):
        lint(path)
