"""Scale migration: what is hard to round in an activation is moved into the weight that reads it.

x W = (x / s) (s W) for any s > 0 per channel. 1 / s goes into what makes x, a norm's gain or the columns of
an up projection, so that the graph computes the same with no node more. s = max|x|^a / max|W|^(1-a) per
channel (SmoothQuant, arXiv 2211.10438), where a is chosen for each place by the error of its output; for
weights in few bits the same search is AWQ's (2306.00978).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from poss_export.onnx_file import read_weight
from poss_export.quantisation.scratch import Keep, in_memory
from poss_export.quantisation.sites import Site
from poss_export.quantisation.statistics import Floats, Statistics

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # a, beside no migration at all
_TINY = 1e-5  # of the largest: a channel that is never used must not get a scale of zero

# output error of one weight: (weight [K, N], statistics of its input) -> relative squared error
Error = Callable[[Floats, Statistics], float]


@dataclass(frozen=True)
class Migration:
    """Where 1 / s can go: a gain `[K]` of norm or head, or the last K columns of an up projection `[_, N]`.

    `weights` are all that read it, each `[K, _]`.
    """

    parameter: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class _Origin:
    """What makes an activation: the parameter that can take 1 / s, and the node whose second input it is.

    `between` are the tensors from that node's output on, without the activation: they are divided too.
    """

    parameter: str
    maker: str
    between: tuple[str, ...] = ()


def find_migrations(model: onnx.ModelProto, sites: Sequence[Site]) -> list[Migration]:
    """Return the places of a graph where scales can move without changing what it computes."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    readers = dict[str, list[onnx.NodeProto]]()
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    at = {site.node: site for site in sites if not site.transposed}
    made_by = dict[str, dict[str, _Origin]]()  # activations of a parameter
    for name in {site.input for site in sites}:
        if (origin := _origin(name, producers, weights)) is not None:
            made_by.setdefault(origin.parameter, {})[name] = origin
    migrations = []
    for parameter, activations in made_by.items():
        nodes = [node for name in activations for node in readers[name]]
        makers = {origin.maker for origin in activations.values()}
        between = {name for origin in activations.values() for name in origin.between}
        inside = all(node.name in at and at[node.name].input in activations for node in nodes)
        alone = {node.name for node in readers[parameter]} == makers
        straight = all(len(readers[name]) == 1 for name in between)
        read = {at[node.name].weight for node in nodes if node.name in at}
        whole = all(site.input in activations for site in sites if site.weight in read)
        if inside and alone and straight and whole and not outputs & {*activations, *between}:
            migrations.append(Migration(parameter, tuple(sorted(read))))
    return migrations


def _origin(name: str, producers: dict[str, onnx.NodeProto], weights: set[str]) -> _Origin | None:
    """Return the norm, gain or up projection that makes an activation, if one does."""
    node = producers.get(name)
    if node is None or node.op_type not in ("RMSNormalization", "Mul"):
        return None
    between = list[str]()
    if node.op_type == "Mul" and node.input[1] not in weights:  # SiLU(gate) * up; in one matrix, gate first
        between.append(node.input[1])
        node = producers.get(between[-1])
        if node is not None and node.op_type == "Split" and node.output[-1] == between[-1]:
            between.append(node.input[0])
            node = producers.get(between[-1])
        if node is None or node.op_type != "MatMul":
            return None
    parameter = node.input[1]
    return _Origin(parameter, node.name, tuple(between)) if parameter in weights else None


def scales(channel_max: Floats, weights: Sequence[Floats], strength: float) -> Floats:
    """Return s `[K]` for an activation and the weights `[K, _]` that read it."""
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    x, w = (np.maximum(part, _TINY * max(part.max(), _TINY)) for part in (channel_max, reach))
    s: Floats = (x**strength / w ** (1 - strength)).astype(np.float32)
    s /= np.exp(np.log(s).mean(dtype=np.float64)).astype(np.float32)  # sizes stay as they were
    return s


def choose_scales(
    model: onnx.ModelProto,
    migrations: Sequence[Migration],
    statistics: Mapping[str, Statistics],
    errors: Mapping[str, Error],
) -> dict[str, Floats]:
    """Return s `[K]` for every migration whose outputs it makes more accurate, by the migration's parameter.

    Args:
        model: with its weights.
        migrations: of it.
        statistics: of each weight's input, by the weight's name.
        errors: the error of each weight that is to be quantised; a migration without one is left alone.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = {}
    for migration in migrations:
        if all(name in errors for name in migration.weights):
            weights = {name: read_weight(tensors[name]) for name in migration.weights}
            candidates = list(_candidates(weights, statistics))
            costs = [_error(weights, s, statistics, errors) for s in candidates]
            if best := int(np.argmin(costs)):  # the first is no migration
                chosen[migration.parameter] = candidates[best]
    return chosen


def move_scales(
    model: onnx.ModelProto,
    migrations: Sequence[Migration],
    scales: Mapping[str, Floats],
    keep: Keep = in_memory,
) -> None:
    """Divide what makes an activation by its scale, and multiply the weights that read it."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for migration in migrations:
        if (s := scales.get(migration.parameter)) is not None:
            parameter = read_weight(tensors[migration.parameter]).astype(np.float32)
            parameter[..., -len(s) :] /= s
            _replace(tensors[migration.parameter], parameter, keep)
            for name in migration.weights:
                _replace(tensors[name], read_weight(tensors[name]).astype(np.float32) * s[:, None], keep)


def _replace(tensor: onnx.TensorProto, values: Floats, keep: Keep) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(keep(values.astype(dtype, copy=False), tensor.name))


def _candidates(weights: Mapping[str, Floats], statistics: Mapping[str, Statistics]) -> Iterator[Floats]:
    channel_max = np.max([statistics[name].channel_max for name in weights], axis=0)
    yield np.ones_like(channel_max)
    for strength in STRENGTHS:
        yield scales(channel_max, list(weights.values()), strength)


def _error(
    weights: Mapping[str, Floats],
    s: Floats,
    statistics: Mapping[str, Statistics],
    errors: Mapping[str, Error],
) -> float:
    return sum(errors[name](weight * s[:, None], statistics[name] / s) for name, weight in weights.items())
