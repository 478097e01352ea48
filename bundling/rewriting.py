"""The graphs of an export, written once more as was decided."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from poss_export.bundling.export import Export
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.engine_spec import GraphName
from poss_export.exporters.embedding import find_embedding
from poss_export.manifest import GRAPHS, TARGET_GRAPH
from poss_export.onnx_file import open_model, save_opened
from poss_export.quantisation import insertion
from poss_export.quantisation.decisions import Decisions
from poss_export.quantisation.gains import COPY, GAIN, add_gains, untie
from poss_export.quantisation.scratch import Keep, Scratch
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.smoothing import find_migrations, move_scales


def write_graph(
    model: onnx.ModelProto, decisions: Decisions, form: insertion.Form, path: Path, keep: Keep
) -> None:
    """Rewrite `model`, whose scales were moved, and save it; `keep` has weights meanwhile."""
    limits: dict[str, float] = {}
    for site in find_sites(model):
        if site.name in decisions.limits:
            limits[site.input] = max(limits.get(site.input, 0.0), decisions.limits[site.name])
    insertion.quantise(model, decisions.schemes, limits, form, decisions.small, keep)
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)  # a link to what is copied
    save_opened(model, path)


def write_other(source: Export, to: Path, decided: Mapping[GraphName, Decisions]) -> Export:
    """Write another cache form to `to`, quantised as was decided, in operators that every engine knows."""
    source.link(GRAPHS.keys() - decided.keys(), to)
    result = Export(to, source.manifest)
    for graph, decisions in decided.items():
        with Scratch(to) as scratch:
            model = _moved(source.graph(graph), decisions, scratch.keep)
            write_graph(model, decisions, "qdq", result.graph(graph), scratch.keep)
    return result


def describe(export: Export, decided: Mapping[GraphName, Decisions], request: QuantiseRequest) -> Export:
    """Return an export whose manifest tells what was decided of its graphs."""
    asked = request.to_dict()
    quantisation = {
        graph: {"scheme": request.graphs[graph].scheme, "request": asked[graph], **decisions.to_dict()}
        for graph, decisions in decided.items()
    }
    embedding = find_embedding(export.folder / TARGET_GRAPH)
    target = replace(export.manifest.target, embedding=embedding)
    return replace(export, manifest=replace(export.manifest, target=target, quantisation=quantisation))


def _moved(graph: Path, decisions: Decisions, keep: Keep) -> onnx.ModelProto:
    """Open another export of a graph that was decided on, and move its scales likewise."""
    model = open_model(graph)
    untie(model, {name.removesuffix(COPY) for name in decisions.schemes if name.endswith(COPY)}, keep)
    add_gains(model, {name.removesuffix(GAIN) for name in decisions.scales if name.endswith(GAIN)})
    move_scales(model, find_migrations(model, find_sites(model)), decisions.scales, keep)
    return model
