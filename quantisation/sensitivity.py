"""Which activations a graph cannot bear to be rounded: each alone, measured at the logits."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poss_export.calibration.replay import Feed
from poss_export.evaluation.text_quality import divergence, log_softmax
from poss_export.onnx_file import save_opened
from poss_export.progress import Progress, silent
from poss_export.quantisation.gains import BY_TABLE
from poss_export.quantisation.statistics import Floats
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.runtime.sessions.ort import OrtOptions

_FLAGS = "rounded_activations"


def sensitivities(
    model: onnx.ModelProto,
    limits: Mapping[str, float],
    feed: Feed,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return for each activation the Kullback-Leibler divergence in nats a token that rounding it costs.

    Args:
        model: a target graph in float32, with its weights; it is not changed.
        limits: how far the 8-bit range of each activation reaches, by the tensor's name.
        feed: a prompt chunk whose every row's logits are wanted.
        threads: of ONNX Runtime.
        progress: told after each how many are done, of how many.
    """
    names = list(limits)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "switched.onnx"
        _save_switched(model, limits, path)
        session = load_graph(path, OrtOptions(threads=threads))
    flags: NDArray[np.bool_] = np.zeros(len(names), dtype=bool)

    def run() -> Floats:
        (logits,) = session.run(["logits"], {**feed, _FLAGS: flags})
        return log_softmax(logits[0])

    exact, found = run(), {}
    for number, name in enumerate(names):
        flags[:] = False
        flags[number] = True
        found[name] = divergence(exact, run())
        progress("measuring sensitivity", number + 1, len(names), "")
    return found


def _save_switched(model: onnx.ModelProto, limits: Mapping[str, float], path: Path) -> None:
    """Write a graph that rounds those activations whose flag is set: one session measures them all."""
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    graph = switched.graph
    graph.input.append(helper.make_tensor_value_info(_FLAGS, TensorProto.BOOL, [len(limits)]))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), f"{_FLAGS}_zero"))
    producers = {output: node.name for node in graph.node for output in node.output}
    after = dict[str, list[onnx.NodeProto]]()
    for number, (name, limit) in enumerate(limits.items()):
        index, step, switch = (f"{name}_{part}" for part in ("index", "step", "switched"))
        graph.initializer.append(numpy_helper.from_array(np.array(number), index))
        graph.initializer.append(numpy_helper.from_array(np.array(limit / 127, np.float32), step))
        for node in graph.node:
            if node.op_type in ("MatMul", *BY_TABLE) and node.input[0] == name:
                node.input[0] = switch
        after[producers[name]] = [
            helper.make_node("Gather", [_FLAGS, index], [f"{name}_flag"]),
            helper.make_node("QuantizeLinear", [name, step, f"{_FLAGS}_zero"], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", step, f"{_FLAGS}_zero"], [f"{name}_dq"]),
            helper.make_node("Where", [f"{name}_flag", f"{name}_dq", name], [switch]),
        ]
    nodes = [new for node in graph.node for new in (node, *after.get(node.name, ()))]
    del graph.node[:]
    graph.node.extend(nodes)
    save_opened(switched, path)
