"""From a drafter's round to the ONNX file of the draft graph."""

import copy
from pathlib import Path

import torch

from poss_export.config import CacheForm, Precision
from poss_export.contract import FLOAT, draft_contract
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.round import DraftRound
from poss_export.exporters.tracing import export_graph


def export_drafter(
    draft_round: DraftRound, path: Path, *, cache_form: CacheForm, precision: Precision, capacity: int
) -> None:
    """Write the draft graph to `path` and its weights to `path` + ".data".

    Args:
        draft_round: the round, with float32 weights; they are read, not changed.
        path: the .onnx file to write.
        cache_form: "shared" (ONNX Runtime CPU) or "static" (standard operators).
        precision: type of weights, caches and embeddings; scores are float32 always.
        capacity: rows a cache can hold; static dimension of the "static" form.
    """
    config, tree = draft_round.config, draft_round.tree
    if precision != "fp32":
        draft_round = copy.deepcopy(draft_round).to(getattr(torch, FLOAT[precision]))
    graph = DraftGraph(draft_round, cache_form, capacity)
    static = {"capacity": capacity} if cache_form == "static" else {}
    export_graph(graph, draft_contract(config, tree, precision), path, static)
