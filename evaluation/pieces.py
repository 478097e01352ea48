"""A target graph that is too large to load, run in pieces: consecutive nodes, and the weights that they read.

The calls are known before the first one, so each piece is loaded once: all calls pass it before the next
piece is loaded. The nodes, and what ONNX Runtime computes for each, are those of the whole graph; what
it makes of nodes on both sides of a cut together is not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from poss_export.contract import GraphContract
from poss_export.progress import Progress
from poss_export.runtime.sessions.base import TargetCall
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.runtime.sessions.ort import OrtOptions
from poss_export.runtime.sessions.ragged import target_inputs
from poss_export.runtime.tree import DraftTree

Array = NDArray[Any]

MOST_BYTES = 1 << 28  # of the weights of a piece that has more than one


@dataclass(frozen=True)
class Step:
    """A call of the target: a tree behind the committed rows, and the nodes of it that are committed then."""

    tree: DraftTree
    path: tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    nodes: Sequence[onnx.NodeProto]
    weights: tuple[str, ...]  # that are not in the graph's own file
    inputs: tuple[str, ...]  # made by other pieces, or of the graph
    outputs: tuple[str, ...]  # that others read, or of the graph


def run_in_pieces(
    model: onnx.ModelProto,
    weight: Callable[[onnx.TensorProto], Array],
    contract: GraphContract,
    steps: Sequence[Step],
    activity: str,
    progress: Progress,
) -> list[tuple[Array, Array]]:
    """Return features `[nodes, feature_size]` and logits `[nodes, vocab]` of every step, from empty caches.

    Args:
        model: a target graph for ONNX Runtime's CPU, its large weights not loaded.
        weight: returns one of these.
        contract: the graph's, of a batch and a capacity.
        steps: the calls.
        activity: what progress is told of.
        progress: told of the bytes of weights that were read.
    """
    large = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    past_of = {present: past for past, present in contract.aliases.items()}
    empty = {spec.name: spec for spec in contract.inputs if spec.is_cache}
    lengths = [0, *accumulate(len(step.path) for step in steps)]
    known = [_feed(step.tree, length) for step, length in zip(steps, lengths, strict=False)]
    done, total = 0, sum(map(_size, large.values()))
    for piece in _cut(model, large):
        arrays = {name: weight(large[name]) for name in piece.weights}
        caches = {
            name: np.zeros(empty[name].sizes, empty[name].dtype) for name in piece.inputs if name in empty
        }
        session = load_graph(_proto(model, piece, arrays).SerializeToString(), OrtOptions(), frugal=True)
        for step, length, values in zip(steps, lengths, known, strict=False):
            feed = {name: values[name] if name in values else caches[name] for name in piece.inputs}
            results = session.run(list(piece.outputs), {**feed, **arrays})
            for name, result in zip(piece.outputs, results, strict=True):
                value = result.copy()  # a result keeps all the memory alive that its session computed in
                if name in past_of:
                    caches[past_of[name]] = _committed(value, length, step.path)
                else:
                    values[name] = value
        del session, results, result
        done += sum(_size(large[name]) for name in piece.weights)
        progress(activity, done // 10**6, total // 10**6, "MB")
    return [(values[contract.feature_output][0], values["logits"][0]) for values in known]


def _feed(tree: DraftTree, length: int) -> dict[str, Array]:
    """Return the inputs of a call, without the caches."""
    call = TargetCall(tree, np.arange(len(tree)), slot=0)
    return target_inputs([call], range(1), np.array([length]), len(tree), len(tree))


def _committed(cache: Array, length: int, path: Sequence[int]) -> Array:
    """Return a cache `[1, heads, capacity, size]` whose new rows are those of a path."""
    cache[:, :, length : length + len(path)] = cache[:, :, [length + node for node in path]]
    return cache


def _cut(model: onnx.ModelProto, large: Mapping[str, onnx.TensorProto]) -> Iterator[_Piece]:
    """Yield the pieces in the order of the graph's nodes."""
    runs, read, size = [list[onnx.NodeProto]()], set[str](), 0
    for node in model.graph.node:
        new = (large.keys() & set(node.input)) - read
        size += sum(_size(large[name]) for name in new)
        if new and runs[-1] and size > MOST_BYTES:
            runs.append([])
            read, size = set(), sum(_size(large[name]) for name in new)
        read |= new
        runs[-1].append(node)
    kept = {tensor.name for tensor in model.graph.initializer} | {""}
    wanted = {value.name for value in model.graph.output}  # behind a piece
    pieces = list[_Piece]()
    for nodes in reversed(runs):
        made = {name for node in nodes for name in node.output}
        names = {name for node in nodes for name in node.input}
        inputs = names - made - kept
        pieces.append(
            _Piece(
                nodes,
                tuple(sorted(names & large.keys())),
                tuple(sorted(inputs)),
                tuple(sorted(made & wanted)),
            )
        )
        wanted |= inputs
    yield from reversed(pieces)


def _proto(model: onnx.ModelProto, piece: _Piece, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a piece as a model, whose large weights are inputs."""
    graph = model.graph
    told = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    inputs = [told[name] for name in piece.inputs]
    for name, array in weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    names = {name for node in piece.nodes for name in node.input}
    small = [tensor for tensor in graph.initializer if tensor.name in names and not tensor.external_data]
    outputs = [onnx.ValueInfoProto(name=name) for name in piece.outputs]
    made = helper.make_graph(piece.nodes, graph.name, inputs, outputs, small)
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)


def _size(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a weight that is not loaded."""
    return int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
