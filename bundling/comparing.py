"""Parity of graphs that were just exported: loaded as they are, or the target in pieces where it is large."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from poss_export.config import TargetConfig
from poss_export.evaluation.parity import SCORES, compare, compare_trees, differences, steps_of
from poss_export.evaluation.pieces import Array, Step, run_in_pieces
from poss_export.exporters.widening import runnable_on_cpu, widen, widen_loaded, widened
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, Manifest
from poss_export.onnx_file import map_weight
from poss_export.progress import Progress
from poss_export.reference import Reference
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions

LOADED = 1 << 30  # bytes of a target's weights in float32, which the CPU computes in: more is not loaded


def in_pieces(config: TargetConfig) -> bool:
    """Return whether a target is compared in pieces."""
    return 4 * config.parameters > LOADED


def compare_graphs(
    folder: Path, manifest: Manifest, reference: Reference, progress: Progress
) -> dict[str, float]:
    """Return the difference of each result of the graphs in `folder` to PyTorch's."""
    if not in_pieces(manifest.target.config):
        with runnable_on_cpu(folder, manifest) as runnable, Bundle(*runnable, OrtOptions()) as bundle:
            return compare(bundle, reference)
    comparing = "comparing the target with PyTorch"
    figures = differences(
        read_in_pieces(folder, manifest, steps_of(reference), comparing, progress), reference
    )
    if manifest.drafter is not None and reference.trees:
        with _drafter(folder, manifest, reference) as drafter:
            figures[SCORES] = compare_trees(drafter, reference)
    return figures


def read_in_pieces(
    folder: Path, manifest: Manifest, steps: Sequence[Step], activity: str, progress: Progress
) -> list[tuple[Array, Array]]:
    """Return what `run_in_pieces` does, of the target in `folder` as the CPU computes it."""

    def weight(tensor: TensorProto) -> NDArray[np.generic]:
        mapped = map_weight(tensor, folder)
        return widened(mapped) if tensor.data_type == TensorProto.BFLOAT16 else mapped

    model = onnx.load(folder / TARGET_GRAPH, load_external_data=False)
    widen_loaded(model)
    contract = contracts_of(_on_cpu(manifest))["target"].with_sizes(batch=1, capacity=manifest.capacity)
    return run_in_pieces(model, weight, contract, steps, activity, progress)


@contextmanager
def _drafter(folder: Path, manifest: Manifest, reference: Reference) -> Iterator[OrtDraftSession]:
    """Give the drafter, entered."""
    contract, table = contracts_of(_on_cpu(manifest))["draft"], manifest.target.embedding.open(folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        graph = folder / DRAFT_GRAPH
        if manifest.precision == "bf16":
            graph = Path(name) / DRAFT_GRAPH
            widen(folder / DRAFT_GRAPH, graph)
            ids = np.unique(reference.ids)
            rows = widened(table[ids])
            table = np.zeros(table.shape, np.float32)  # takes no memory where nothing is written
            table[ids] = rows
        with OrtDraftSession(graph, contract, manifest.capacity, OrtOptions(), table) as drafter:
            yield drafter


def _on_cpu(manifest: Manifest) -> Manifest:
    """Return a manifest of what the CPU computes in the place of bfloat16."""
    return replace(manifest, precision="fp32") if manifest.precision == "bf16" else manifest
