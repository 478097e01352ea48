"""Where the time of a call goes, node by node, from ONNX Runtime's own profile of the CPU.

Every figure is a minimum: each node's shortest time over the repeats, because a node of some microseconds is
seldom disturbed, a whole call on a busy machine always.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from poss_export.contract import TensorSpec
from poss_export.errors import BackendError, InputError
from poss_export.evaluation.latency import target_calls
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession

_HEAVIEST = 10  # nodes that a report lists


@dataclass(frozen=True)
class Node:
    """A node of a graph in one call: its kind, its time, and the bytes of weights that it has."""

    kind: str
    milliseconds: float
    weights: int

    @property
    def bytes_per_second(self) -> float:
        """The speed at which it would have read its weights once."""
        return 1000 * self.weights / self.milliseconds if self.milliseconds else 0.0


Nodes = Mapping[str, Node]  # by name


def target_nodes(
    folder: Path, past: int, widths: Sequence[int], repeats: int, threads: int | None
) -> list[Nodes]:
    """Return the nodes of target calls of each width behind `past` tokens, every row's logits wanted."""
    manifest = read_manifest(folder)
    contract, vocab = contracts_of(manifest)["target"], manifest.target.config.vocab_size
    with TemporaryDirectory() as temporary:
        options = OrtOptions(threads=threads, profile=str(Path(temporary) / "target"))
        with OrtTargetSession(folder / TARGET_GRAPH, contract, manifest.capacity, options) as target:
            calls = list(target_calls(target, vocab, past, widths).values())
            _repeat(calls, repeats)
        return _nodes(Path(temporary), weight_bytes(folder / TARGET_GRAPH), len(calls), repeats)


def draft_nodes(
    folder: Path, past: int, rows: Sequence[int], repeats: int, threads: int | None
) -> list[Nodes]:
    """Return the nodes of a draft round that reads so many new rows behind `past`."""
    manifest = read_manifest(folder)
    table = manifest.target.embedding.open(folder)
    contract, capacity = contracts_of(manifest)["draft"], manifest.capacity
    features = next(spec for spec in contract.inputs if spec.name == "features")
    with TemporaryDirectory() as temporary:
        options = OrtOptions(threads=threads, profile=str(Path(temporary) / "draft"))
        with OrtDraftSession(folder / DRAFT_GRAPH, contract, capacity, options, table) as drafter:
            calls = [partial(_propose, drafter, len(table), features, past, count) for count in rows]
            drafter.propose(*_new_rows(len(table), features, past))
            _repeat(calls, repeats)
        return _nodes(Path(temporary), weight_bytes(folder / DRAFT_GRAPH), len(calls), repeats)


def weight_bytes(graph: Path) -> dict[str, int]:
    """Return the bytes of weights by the nodes that multiply by them."""
    import onnx

    model = onnx.load(graph, load_external_data=False).graph
    sizes = {
        tensor.name: prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.initializer
    }
    products = (node for node in model.node if "MatMul" in node.op_type or node.op_type == "Gemm")
    return {node.name: sum(sizes.get(name, 0) for name in node.input[1:]) for node in products}


def by_kind(nodes: Nodes) -> dict[str, float]:
    """Return milliseconds by kind of node, the most first."""
    kinds = defaultdict[str, float](float)
    for node in nodes.values():
        kinds[node.kind] += node.milliseconds
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1]))


def profile_layers(folder: Path, repeats: int, threads: int | None) -> list[dict[str, Any]]:
    """Return what a plain step, a verification and a draft call take: kinds of node, the heaviest nodes.

    Plain JSON values, a row for each call: `call`, `graph`, `rows`, `context`, `milliseconds` of all nodes,
    `kinds` (milliseconds by kind), `heaviest` (`node`, `kind`, `milliseconds`, `weight_bytes`,
    `bytes_per_second`).

    Raises:
        BackendError: ONNX Runtime is missing, or refuses a graph.
        BundleError: it is no bundle.
        InputError: the capacity has no room for the calls.
    """
    manifest = read_manifest(folder)
    width = 8 if manifest.drafter is None else manifest.drafter.tree.width
    context = min(128, manifest.capacity - width)
    if manifest.precision == "bf16":
        raise BackendError("a bundle in bf16 does not run in ONNX Runtime, whose nodes these would be")
    if context < 1:
        raise InputError(f"the capacity of {manifest.capacity} tokens has no room for a tree of {width}")
    names = ("step", "verify")
    found = [
        _report(name, "target", rows, context, nodes)
        for name, rows, nodes in zip(
            names, (1, width), target_nodes(folder, context, (1, width), repeats, threads), strict=True
        )
    ]
    if manifest.drafter is not None:
        (nodes,) = draft_nodes(folder, context, (1,), repeats, threads)
        found.append(_report("draft", "draft", 1, context, nodes))
    return found


def _report(call: str, graph: str, rows: int, context: int, nodes: Nodes) -> dict[str, Any]:
    kinds = by_kind(nodes)
    heaviest = sorted(nodes.items(), key=lambda item: -item[1].milliseconds)[:_HEAVIEST]
    return {
        "call": call,
        "graph": graph,
        "rows": rows,
        "context": context,
        "milliseconds": round(sum(kinds.values()), 4),
        "kinds": {kind: round(value, 4) for kind, value in kinds.items()},
        "heaviest": [
            {
                "node": name,
                "kind": node.kind,
                "milliseconds": round(node.milliseconds, 4),
                "weight_bytes": node.weights,
                "bytes_per_second": round(node.bytes_per_second),
            }
            for name, node in heaviest
        ],
    }


def _new_rows(vocab: int, features: TensorSpec, count: int) -> tuple[Any, Any]:
    random, shape = np.random.default_rng(0), features.with_sizes(batch=1, rows=count).sizes
    return random.integers(0, vocab, count), random.standard_normal(shape[1:]).astype(features.dtype)


def _propose(drafter: OrtDraftSession, vocab: int, features: TensorSpec, past: int, count: int) -> None:
    drafter.trim(past)
    drafter.propose(*_new_rows(vocab, features, count))


def _repeat(calls: Sequence[Callable[[], Any]], repeats: int) -> None:
    for _ in range(repeats + 1):  # the first turn warms up
        for call in calls:
            call()


def _nodes(folder: Path, weights: Mapping[str, int], calls: int, repeats: int) -> list[Nodes]:
    """Return, for each of the calls that took turns, its nodes, from the profile in `folder`."""
    (profile,) = folder.iterdir()
    runs = _runs(json.loads(profile.read_text(encoding="utf-8")), weights)[-calls * repeats :]
    return [_least(runs[number::calls]) for number in range(calls)]


def _runs(events: list[dict[str, Any]], weights: Mapping[str, int]) -> list[dict[str, Node]]:
    """Return the nodes of each run of the graph."""
    runs, nodes = [], dict[str, Node]()
    for event in sorted(events, key=lambda event: event["ts"] + event.get("dur", 0)):
        if event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            nodes[name] = Node(event["args"]["op_name"], event["dur"] / 1000, weights.get(name, 0))
        elif event["name"] == "model_run":
            runs.append(nodes)
            nodes = {}
    return runs


def _least(runs: Sequence[Mapping[str, Node]]) -> Nodes:
    return {name: min((run[name] for run in runs), key=lambda node: node.milliseconds) for name in runs[0]}
