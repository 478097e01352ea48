"""From a drafter's round to the ONNX file of the draft graph."""

from pathlib import Path

from poss_export.config import CacheForm, Precision
from poss_export.contract import draft_contract
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.round import DraftRound
from poss_export.exporters.tracing import export_graph
from poss_export.progress import Progress, silent
from poss_export.targets.weights import weights_of


def export_drafter(
    draft_round: DraftRound,
    path: Path,
    *,
    cache_form: CacheForm,
    precision: Precision,
    capacity: int,
    progress: Progress = silent,
) -> str:
    """Write the draft graph to `path` and its weights to `path` + ".data"; return the hash of that file.

    Args:
        draft_round: the round, with float32 weights; they are read, not changed.
        path: the .onnx file to write.
        cache_form: "shared" (ONNX Runtime CPU) or "static" (standard operators).
        precision: type of weights, caches and embeddings; scores are float32 always.
        capacity: rows a cache can hold; static dimension of the "static" form.
        progress: told of the bytes that are written.
    """
    graph = DraftGraph(draft_round, cache_form, capacity)
    contract = draft_contract(draft_round.config, draft_round.tree, precision)
    static = {"capacity": capacity} if cache_form == "static" else {}
    return export_graph(
        graph, contract, path, static, precision=precision, weights=weights_of(graph), progress=progress
    )
