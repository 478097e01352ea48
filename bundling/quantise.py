"""From a bundle in floating point to a quantised one: observe, decide, rewrite, measure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from poss_export.bundling.export import Export
from poss_export.bundling.observing import make_sweep, observe_graph
from poss_export.calibration.acceptance_fit import from_record
from poss_export.calibration.record import Record
from poss_export.calibration.recording import record_rounds
from poss_export.config import Thresholds
from poss_export.engine_spec import GraphName
from poss_export.evaluation.held_out import HELD_OUT, PROMPTS
from poss_export.evaluation.quality import Trial, measure_quality
from poss_export.evaluation.text_quality import read_windows
from poss_export.evaluation.thresholds import require_quality
from poss_export.evaluation.widths import measure_widths
from poss_export.exporters.embedding import find_embedding
from poss_export.manifest import ACCEPTANCE, GRAPHS, TARGET_GRAPH, Manifest
from poss_export.progress import Progress, Report, silent
from poss_export.prompts import Prompt
from poss_export.quantisation import insertion
from poss_export.quantisation.decisions import Decisions, GraphRequest, decide
from poss_export.quantisation.gains import COPY, GAIN, add_gains, untie
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.smoothing import find_migrations, move_scales
from poss_export.runtime.sessions.base import Ints

_NEW_TOKENS = 48  # a prompt
_STATIC_WINDOWS = 2


@dataclass(frozen=True)
class QuantiseRequest:
    """What is asked of a bundle's graphs, and what the result is measured by."""

    graphs: Mapping[GraphName, GraphRequest]
    samples: Record | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    text: Path = HELD_OUT
    prompts: tuple[Prompt, ...] = PROMPTS

    def to_dict(self) -> dict[GraphName, dict[str, Any]]:
        """Return what decides how each graph is quantised, as plain JSON values."""
        samples = None if self.samples is None else self.samples.sha256
        return {
            graph: {**asdict(wanted), "layers": [list(layer) for layer in wanted.layers], "samples": samples}
            for graph, wanted in self.graphs.items()
        }


def quantise_bundle(
    source: Export,
    reference: Export,
    to: Path,
    request: QuantiseRequest,
    *,
    report: Report,
    progress: Progress = silent,
) -> Manifest:
    """Write quantised graphs of `source` to the folder `to`; return its manifest, files not yet listed.

    Decisions are made on `reference` and made of `source`: the same one, or another cache form of it.

    Args:
        source: the export in floating point.
        reference: the same target, drafter and tree in float32 with `shared` caches.
        to: an existing folder.
        request: what is asked.
        report: told what begins.
        progress: told how far a long step is.

    Raises:
        InputError: samples or text cannot be used, or a pattern fits no layer.
        QualityError: the result misses a threshold.
    """
    same = source.folder == reference.folder
    bundle, limit = reference.open(), None if _timed(source) else _STATIC_WINDOWS
    windows = read_windows(bundle.text, bundle.target.capacity, request.text, limit)
    with TemporaryDirectory(dir=to) as temporary:
        folder = to if same else Path(temporary)
        shared, decided = _quantise_shared(reference, folder, request, report, progress)
        result = shared if same else _quantise_other(source, to, decided, request)
        quality = _measure(result, shared, reference, request, windows, report) if decided else None
        if request.samples is not None and shared.manifest.drafter is not None:
            report("calibrating acceptance")
            write_acceptance(shared, request.samples, to)
    return replace(result.manifest, quality=quality)


def _quantise_shared(
    reference: Export, folder: Path, request: QuantiseRequest, report: Report, progress: Progress
) -> tuple[Export, dict[GraphName, Decisions]]:
    """Write the reference to `folder`, quantised as its CPU runs it; return that, and what was decided."""
    result = Export(folder, reference.manifest)
    reference.link(GRAPHS.keys() - request.graphs.keys(), folder)
    decided = dict[GraphName, Decisions]()
    for graph in (graph for graph in GRAPHS if graph in request.graphs):  # the target first
        report(f"quantising {GRAPHS[graph]}")
        model = onnx.load(reference.graph(graph))  # before it has a second link, which it refuses
        statistics, sweep = None, None
        if request.samples is not None:
            if graph == "draft":
                reference.link([graph], folder)
            # A drafter reads the features of the target that will run.
            running = result if graph == "draft" else reference
            statistics = observe_graph(running, graph, request.samples, progress)
            sweep = make_sweep(reference, request.samples, progress) if graph == "target" else None
        decided[graph] = decide(model, request.graphs[graph], statistics, sweep)
        _write(model, decided[graph], "qoperator", result.graph(graph))
    return _described(result, decided, request), decided


def _quantise_other(
    source: Export, to: Path, decided: Mapping[GraphName, Decisions], request: QuantiseRequest
) -> Export:
    """Write another cache form to `to`, quantised as was decided, in operators that every engine knows."""
    source.link(GRAPHS.keys() - decided.keys(), to)
    result = Export(to, source.manifest)
    for graph, decisions in decided.items():
        _write(_moved(source.graph(graph), decisions), decisions, "qdq", result.graph(graph))
    return _described(result, decided, request)


def write_acceptance(source: Export, samples: Record, to: Path) -> None:
    """Answer the prompts of the samples with the bundle; write how its drafter's scores are to be read."""
    prompts = [dialogue.prompt.tolist() for dialogue in samples.dialogues]
    longest = max(sum(len(r.path) for r in dialogue.rounds) for dialogue in samples.dialogues)
    with source.open() as bundle:
        record = record_rounds(bundle, prompts, longest, argv=source.manifest.argv)
    from_record(record).save(to / ACCEPTANCE)


def _write(model: onnx.ModelProto, decisions: Decisions, form: insertion.Form, path: Path) -> None:
    """Rewrite `model`, whose scales were moved, and save it."""
    limits: dict[str, float] = {}
    for site in find_sites(model):
        if site.name in decisions.limits:
            limits[site.input] = max(limits.get(site.input, 0.0), decisions.limits[site.name])
    insertion.quantise(model, decisions.schemes, limits, form)
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)  # a link to what is copied
    insertion.save(model, path)


def _moved(graph: Path, decisions: Decisions) -> onnx.ModelProto:
    """Load another export of a graph that was decided on, and move its scales likewise."""
    model = onnx.load(graph)
    untie(model, {name.removesuffix(COPY) for name in decisions.schemes if name.endswith(COPY)})
    add_gains(model, {name.removesuffix(GAIN) for name in decisions.scales if name.endswith(GAIN)})
    move_scales(model, find_migrations(model, find_sites(model)), decisions.scales)
    return model


def _described(export: Export, decided: Mapping[GraphName, Decisions], request: QuantiseRequest) -> Export:
    """Return an export whose manifest tells what was decided of its graphs."""
    asked = request.to_dict()
    quantisation = {
        graph: {"scheme": request.graphs[graph].scheme, "request": asked[graph], **decisions.to_dict()}
        for graph, decisions in decided.items()
    }
    embedding = find_embedding(export.folder / TARGET_GRAPH)
    target = replace(export.manifest.target, embedding=embedding)
    return replace(export, manifest=replace(export.manifest, target=target, quantisation=quantisation))


def _timed(export: Export) -> bool:
    """Return whether times on this CPU say something.

    On the CPU a static form is many times slower, and its times say nothing of the engines made of it.
    """
    return export.manifest.cache_form == "shared"


def _measure(
    result: Export,
    shared: Export,
    reference: Export,
    request: QuantiseRequest,
    windows: Sequence[Ints],
    report: Report,
) -> dict[str, Any]:
    """Return the figures of the result, if they are good enough; its `shared` form answers the prompts."""
    timed = _timed(result)
    trial = Trial(windows, request.prompts, _NEW_TOKENS, timed)
    figures: dict[str, Any] = {"thresholds": asdict(request.thresholds)}
    if timed:  # first: plain steps have the least width that it finds
        report("measuring widths")
        figures["widths"] = measure_widths(result.open(), windows[0])
    answering = replace(shared, manifest=replace(shared.manifest, quality=figures))
    with reference.open() as exact, answering.open() as pair:
        if timed:
            figures |= measure_quality(exact, pair, pair, trial, report)
        else:
            with result.open() as bundle:
                figures |= measure_quality(exact, bundle, pair, trial, report)
    require_quality(figures, request.thresholds)
    return figures
