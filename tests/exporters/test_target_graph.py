"""Target graphs in ONNX Runtime against transformers, and the laws of their caches."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from poss_export.config import CacheForm, Precision, TargetConfig
from poss_export.contract import WIDEST, TensorSpec, target_contract
from poss_export.errors import InputError
from poss_export.exporters.target import TargetGraph, export_target
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import Decoder

Outputs = dict[str, NDArray[Any]]

ARCHITECTURES = (
    *("llama", "llama3", "biased", "mistral", "qwen2", "qwen3", "granite", "gemma2", "gemma3", "qwen3_moe"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("windows", "phi4", "gemma", "mixtral")),
)
FORMS: tuple[CacheForm, ...] = ("shared", "static")
PROMPT = [5, 17, 60, 3, 44, 9, 71]
# A root and seven nodes: three children, two of which go on.
#         0
#     1   2   3
#    4 5  6
#    7
PARENTS = [-1, 0, 0, 0, 1, 1, 2, 4]
TREE = [11, 12, 13, 14, 15, 16, 17, 18]


def path_to(node: int) -> list[int]:
    """Return the nodes from the root to `node`."""
    return [] if node < 0 else [*path_to(PARENTS[node]), node]


DEPTHS = [len(path_to(node)) - 1 for node in range(len(PARENTS))]
MASK = np.array([[column in path_to(row) for column in range(len(PARENTS))] for row in range(len(PARENTS))])


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def assert_same(one: Outputs, other: Outputs, tolerance: float = 1e-5) -> None:
    for name in ("logits", "features"):
        assert relative_error(one[name], other[name]) <= tolerance, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_graph_equals_transformers_cached_and_with_a_tree(
    tiny_folder: Callable[[str], Path],
    target_graph: Callable[..., Path],
    cached_target: Any,
    name: str,
    form: CacheForm,
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(name), dtype=torch.float32)

    def expect(ids: list[int], last: int) -> Outputs:
        with torch.no_grad():
            out = reference(torch.tensor([ids]), output_hidden_states=True)
        return {"logits": out.logits.numpy()[:, -last:], "features": out.hidden_states[-1].numpy()[:, -last:]}

    target = cached_target(target_graph(name, form))
    assert_same(target(PROMPT), expect(PROMPT, 7), 1e-4)
    assert_same(target([20, 21, 22]), expect([*PROMPT, 20, 21, 22], 3), 1e-4)
    assert_same(target([23]), expect([*PROMPT, 20, 21, 22, 23], 1), 1e-4)
    prefix = [*PROMPT, 20, 21, 22, 23]
    tree = target(TREE, DEPTHS, MASK)
    for node in range(len(TREE)):
        path = [TREE[i] for i in path_to(node)]
        node_of_tree = {name: tree[name][:, [node]] for name in ("logits", "features")}
        assert_same(node_of_tree, expect([*prefix, *path], 1), 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_at_once_equal_single_steps(
    target_graph: Callable[..., Path], cached_target: Any, form: CacheForm
) -> None:
    at_once, stepwise = (cached_target(target_graph("llama", form)) for _ in range(2))
    whole = at_once(PROMPT)
    for index, token in enumerate(PROMPT):
        step = stepwise([token])
        assert_same(step, {name: whole[name][:, [index]] for name in ("logits", "features")})
    for name, cache in at_once.caches.items():
        np.testing.assert_allclose(stepwise.caches[name], cache, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_tree_equals_its_paths_and_a_committed_path_equals_a_fresh_run(
    target_graph: Callable[..., Path], cached_target: Any, name: str, form: CacheForm
) -> None:
    graph = target_graph(name, form)
    drafted = cached_target(graph)
    drafted(PROMPT)
    tree = drafted(TREE, DEPTHS, MASK)
    accepted = path_to(7)
    for cache in drafted.caches.values():  # commit: accepted rows together, the rest is dropped
        rows = len(PROMPT) + np.arange(len(accepted))
        cache[:, :, rows] = cache[:, :, len(PROMPT) + np.array(accepted)]
    drafted.length = len(PROMPT) + len(accepted)

    fresh = cached_target(graph)
    fresh(PROMPT)
    path = fresh([TREE[node] for node in accepted])
    assert_same({name: tree[name][:, accepted] for name in ("logits", "features")}, path)
    assert_same(drafted([30]), fresh([30]))


@pytest.mark.parametrize("form", FORMS)
def test_only_wanted_rows_get_logits(
    target_graph: Callable[..., Path], cached_target: Any, form: CacheForm
) -> None:
    graph = target_graph("llama", form)
    every, some, none = (cached_target(graph) for _ in range(3))
    whole, picked = every(PROMPT), some(PROMPT, rows=[6, 2])
    np.testing.assert_allclose(picked["logits"], whole["logits"][:, [6, 2]], atol=1e-5)
    np.testing.assert_array_equal(whole["next_tokens"], whole["logits"].argmax(-1))
    assert none(PROMPT, rows=[])["logits"].shape == (1, 0, 96)


def test_ties_go_to_the_lower_token(
    tiny_folder: Callable[[str], Path], tmp_path: Path, cached_target: Any
) -> None:
    decoder = open_target(str(tiny_folder("llama"))).load_decoder()
    decoder.embed_tokens[48:] = decoder.embed_tokens[:48].clone()  # every logit appears twice
    export_target(decoder, tmp_path / "t.onnx", cache_form="shared", precision="fp32", capacity=48)
    outputs = cached_target(tmp_path / "t.onnx")(PROMPT)
    np.testing.assert_array_equal(outputs["logits"][..., :48], outputs["logits"][..., 48:])
    assert (outputs["next_tokens"] < 48).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_batches(target_graph: Callable[..., Path], cached_target: Any, name: str, form: CacheForm) -> None:
    """Prefill and plain steps of a batch; trees of a batch too in standard operators."""
    graph = target_graph(name, form)
    one, two = cached_target(graph), cached_target(graph, batch=2)
    calls = [(PROMPT,), ([20],)] + ([(TREE, DEPTHS, MASK)] if form == "static" else [])
    for call in calls:
        single, double = one(*call), two(*call)
        for row in range(2):
            assert_same({name: double[name][[row]] for name in ("logits", "features")}, single)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_half_precision_stays_close(
    target_graph: Callable[..., Path], cached_target: Any, name: str, form: CacheForm
) -> None:
    half, full = (cached_target(target_graph(name, form, precision)) for precision in ("fp16", "fp32"))
    for call in ((PROMPT,), ([20],), (TREE, DEPTHS, MASK)):
        ours, exact = half(*call), full(*call)
        assert ours["logits"].dtype == ours["features"].dtype == np.float16
        assert_same(ours, exact, 2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_graph_keeps_the_contract_and_one_copy_of_the_weights(
    tiny_folder: Callable[[str], Path], target_graph: Callable[..., Path], form: CacheForm
) -> None:
    path = target_graph("llama", form)
    config = open_target(str(tiny_folder("llama"))).config
    model = onnx.load(path, load_external_data=False)
    contract = target_contract(config, "fp32")
    contract.check(tensor_specs(model.graph.input), tensor_specs(model.graph.output), "target.onnx")

    weights = sum(np.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1)
    rows = 48 + (WIDEST - 1 if form == "shared" else 0)
    rotary = 2 * rows * config.head_dim // 2
    assert weights - decoder_size(config) - rotary <= 8  # a few scalars
    heads = [node for node in model.graph.node if "lm_head" in node.input[-1] and node.op_type != "Gather"]
    assert [node.op_type for node in heads] == ["FusedMatMul" if form == "shared" else "Gemm"]
    assert not any(node.op_type == "Transpose" and "lm_head" in node.input[0] for node in model.graph.node)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    return [
        TensorSpec(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def decoder_size(config: TargetConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Decoder(config).parameters())


def test_static_graph_is_standard_onnx(target_graph: Callable[..., Path]) -> None:
    model = onnx.load(target_graph("qwen3", "static"))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    onnx.checker.check_model(model, full_check=True)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attention) == 2
    for node in attention:  # what TensorRT's parser accepts: one output, an explicit mask
        assert len(node.output) == 1
        assert len(node.input) == 4
        assert not [a for a in node.attribute if a.name == "is_causal" and a.i]


@pytest.mark.parametrize(("name", "precision"), [("llama", "fp16"), ("mistral", "fp32")])  # tied, not tied
def test_embedding_table_is_where_the_export_says(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str, precision: Precision
) -> None:
    decoder = open_target(str(tiny_folder(name))).load_decoder()
    shape: Any = {"cache_form": "shared", "precision": precision, "capacity": 48}
    table = export_target(decoder, tmp_path / "t.onnx", **shape).embedding
    assert table.file == "t.onnx.data"
    np.testing.assert_array_equal(table.open(tmp_path), decoder.embed_tokens.numpy().astype(table.dtype))
    assert {weight.dtype for weight in decoder.parameters()} == {
        torch.float32
    }  # the export left it as it was


@pytest.mark.parametrize("capacity", [0, 129])
def test_capacity_beyond_the_positions_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capacity: int
) -> None:
    decoder = open_target(str(tiny_folder("mistral"))).load_decoder()
    with pytest.raises(InputError, match=f"capacity is {capacity} tokens.*1 to 128"):
        export_target(decoder, tmp_path / "t.onnx", cache_form="shared", precision="fp32", capacity=capacity)
    assert not list(tmp_path.iterdir())


def test_heads_that_the_shared_form_cannot_serve_are_refused(tmp_path: Path) -> None:
    config = TargetConfig("llama", 96, 32, 48, 1, 4, 2, 8, 1e-5, 128)
    with pytest.raises(InputError, match=r"heads of size 8.*use cache form 'static'"):
        export_target(
            Decoder(config), tmp_path / "t.onnx", cache_form="shared", precision="fp32", capacity=48
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_eager_module_equals_its_graph(
    tiny_folder: Callable[[str], Path],
    target_graph: Callable[..., Path],
    cached_target: Any,
    name: str,
    form: CacheForm,
) -> None:
    decoder = open_target(str(tiny_folder(name))).load_decoder()
    module = TargetGraph(decoder, form, 48)
    graph = cached_target(target_graph(name, form))
    caches = [torch.zeros(1, 2, 48, 16) for _ in range(4)]
    for ids, depths, mask in ((PROMPT, list(range(7)), np.tril(np.ones((7, 7), bool))), (TREE, DEPTHS, MASK)):
        past = torch.tensor([graph.length])
        inputs = (torch.tensor([ids]), past + torch.tensor([depths]), torch.tensor(mask)[None], past)
        with torch.no_grad():
            logits, _, features, *caches = module(*inputs, torch.arange(len(ids))[None], *caches)
        assert_same({"logits": logits.numpy(), "features": features.numpy()}, graph(ids, depths, mask))
    for ours, theirs in zip(caches, graph.caches.values(), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_a_window_that_hides_nothing_is_not_in_the_graph(tiny_folder: Callable[[str], Path]) -> None:
    decoder = open_target(str(tiny_folder("windows"))).stream_decoder()
    assert [TargetGraph(decoder, "static", capacity).config.window for capacity in (6, 7)] == [None, 6]


@pytest.mark.parametrize("form", FORMS)
def test_taps_are_what_enters_the_layers(
    tiny_folder: Callable[[str], Path],
    target_graph: Callable[..., Path],
    cached_target: Any,
    form: CacheForm,
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    with torch.no_grad():
        entering = reference(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states[:2]
    expected = torch.cat(entering, dim=-1).numpy()
    target, plain = (
        cached_target(target_graph("llama", form, "fp32", (0, 1))),
        cached_target(target_graph("llama", form)),
    )
    first, rest = target(PROMPT[:4]), target(PROMPT[4:])
    assert relative_error(np.concatenate((first["taps"], rest["taps"]), 1), expected) <= 1e-5
    assert "features" not in first
    plain(PROMPT[:4])
    assert (plain(PROMPT[4:])["logits"] == rest["logits"]).all()
