"""What the export of a plan's graphs takes: memory and disk by sizes, time by how fast weights are read here.

The constants are those of the exports in docs/targets.md.
"""

import shutil
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from poss_export.bundling.comparing import in_pieces
from poss_export.bundling.plan import Plan
from poss_export.bundling.sizes import draft_parameters, target_bytes
from poss_export.errors import InputError
from poss_export.evaluation.pieces import MOST_BYTES
from poss_export.machine import memory
from poss_export.manifest import TARGET_GRAPH
from poss_export.progress import Report

_PROCESS = 0.75e9  # bytes: libraries, tokenizer, and what an allocator does not give back
_BEGIN, _LAYER, _DRAFT = 12.0, 1.0, 25.0  # seconds: libraries and text; to trace a layer; to trace a drafter
_PASSES = 4.0  # of reading the target, what exporting and comparing take in all
_PROBED = 1.0  # seconds of reading that tell how fast it is
_STRIDE = 23  # weights from one that is read to the next


@dataclass(frozen=True)
class Estimate:
    """What an export will take; `seconds`, in the state this machine is in, without quantising and engines.

    Memory and disk are those of quantising, too, and of what is learned of a drafter.
    """

    seconds: int
    peak_memory: int  # bytes, of the host
    disk: int  # bytes, while it is at work


def estimate_export(plan: Plan) -> Estimate:
    """Return what the export of a plan will take; some of the target's weights are read for it."""
    layers = plan.target.config.num_layers
    seconds = _BEGIN + layers * _LAYER + (plan.drafter is not None) * _DRAFT
    seconds += _PASSES * plan.target.parameters * _seconds_per_weight(plan)
    return Estimate(round(seconds), _peak_memory(plan), disk_bytes(plan))


def check_room(plan: Plan, folder: Path, report: Report) -> None:
    """Raise InputError where what a plan takes is not there; `report` what is there, and in use.

    Args:
        plan: what is to be built.
        folder: where the bundle will be.
        report: told that memory is scarce.
    """
    need, place = disk_bytes(plan), next(parent for parent in folder.parents if parent.exists())
    if need > (free := shutil.disk_usage(place).free):
        raise InputError(
            f"the build writes {need / 1e9:.1f} GB, but {str(place)!r} has {free / 1e9:.1f} GB free: make "
            "room, or choose another output folder"
        )
    if (found := memory()) is None:
        return
    total, available = found
    if (need := _exporting(plan)) > total:
        raise InputError(
            f"the export takes {need / 1e9:.1f} GB of memory, and this machine has {total / 1e9:.1f} GB: "
            "build on a larger one"
        )
    if (need := _peak_memory(plan)) > available:  # what runs whole graphs maps some of it, and becomes slow
        report(
            f"warning: the build takes {need / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free"
        )


def disk_bytes(plan: Plan) -> int:
    """Return what a build writes: its files, and what lies there for a time.

    First these are the float graphs that quantised ones are made of, and what is put aside meanwhile; then
    the weights of the target as the kernels of several slots read them.
    """
    files, floats = plan.to_dict()["files"], 0
    if plan.quantise is not None:
        item = 2 if plan.precision != "fp32" else 4
        floats = item * plan.target.parameters
        floats += 4 * plan.target.parameters * (plan.cache_form != "shared")
        floats += _scratch(plan)
    slots = may_measure(plan) and plan.cache_form == "shared"
    packed = 2 * files[f"{TARGET_GRAPH}.data"] if slots else 0
    return int(sum(files.values()) + max(floats, packed))


def may_measure(plan: Plan) -> bool:
    """Return whether the target that is built runs here: its type does, and it is not too large to be loaded.

    To quantise a target it is loaded, whatever its size.
    """
    loaded = "target" in plan.quantise_requests or not in_pieces(plan.target.config)
    return loaded and plan.precision != "bf16"


def _scratch(plan: Plan) -> int:
    """Return the bytes that quantising a target puts aside: small weights, moved ones, a copy of the head."""
    wanted = None if plan.quantise is None else plan.quantise.graphs.get("target")
    if wanted is None:
        return 0
    config, parameters = plan.target.config, plan.target.parameters
    moved = parameters * (wanted.smoothing and bool(wanted.need_samples))
    table = config.vocab_size * config.hidden_size
    return target_bytes(plan.target, plan.precision, wanted.scheme) + 4 * (moved + table)


def _peak_memory(plan: Plan) -> int:
    """Return the peak: while graphs are exported, or while whole ones run that something is learned of."""
    return max(_exporting(plan), _learning(plan))


def _learning(plan: Plan) -> int:
    """Return the peak of what a drafter and a quantised target are measured by: graphs loaded as a whole."""
    if plan.quantise is None:
        return 0
    small, learned = _small(plan), _learned(plan)
    # A quantised target's kernels pack its weights, and it may be all that is loaded.
    return learned + small if runs_whole(plan) else learned - 4 * plan.target.parameters + 2 * small


def runs_whole(plan: Plan) -> bool:
    """Return whether this machine's memory holds a target in float32 and the one that is judged beside it.

    What is learned from samples runs as a whole in any case.
    """
    wanted, found = None if plan.quantise is None else plan.quantise.graphs.get("target"), memory()
    if wanted is None or wanted.need_samples or found is None:
        return True
    return _learned(plan) + _small(plan) <= found[0]


def _learned(plan: Plan) -> int:
    """Return the memory of a target and a drafter in float32."""
    drafter = 0 if plan.drafter is None else draft_parameters(plan.target, plan.drafter, plan.tree)
    return int(_PROCESS + 4 * (plan.target.parameters + drafter))


def _small(plan: Plan) -> int:
    """Return the bytes of the quantised target, if there is one."""
    wanted = None if plan.quantise is None else plan.quantise.graphs.get("target")
    return 0 if wanted is None else target_bytes(plan.target, "fp32", wanted.scheme)


def _exporting(plan: Plan) -> int:
    """Return the peak: with one layer in PyTorch, with a weight to be written, or with a piece that runs."""
    config, item = plan.target.config, 4 if plan.precision == "fp32" else 2
    table = config.vocab_size * config.hidden_size
    tables = (1 if config.tied_embeddings else 2) * table
    layer = (plan.target.parameters - tables) // config.num_layers
    # The CPU computes in float32: weights of other types are there twice.
    both = 4 if item == 4 else item + 4
    units = 2 * config.mlps * config.intermediate_size  # of the largest matrix of a layer
    compared = max(table, units * config.hidden_size, MOST_BYTES // item) * both
    if not in_pieces(config):
        compared = plan.target.parameters * (both + 4)  # and packed for the kernels
    drafter = 0 if plan.drafter is None else draft_parameters(plan.target, plan.drafter, plan.tree)
    alone = drafter * (both + 4)  # it is compared behind the target, or beside one that is loaded
    compared = max(compared, alone) if in_pieces(config) else compared + alone
    return int(_PROCESS + 4 * drafter + max(4 * layer, item * max(table, layer // 2), compared))


def _seconds_per_weight(plan: Plan) -> float:
    """Return how long it takes to read a weight, and to turn it into a float of the decoder.

    Layers are read from many places of the files, some of which may be in memory and others not; tables would
    take seconds each.
    """
    largest = plan.target.config.vocab_size * plan.target.config.hidden_size
    layers = [weight for weight in plan.target.weights().values() if prod(weight.shape) < largest]
    spread = [weight for first in range(_STRIDE) for weight in layers[first::_STRIDE]]
    read, begin = 0, time.perf_counter()
    for weight in spread:
        read += weight.read().numel()
        if (passed := time.perf_counter() - begin) > _PROBED:
            break
    return passed / read
