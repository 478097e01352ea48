"""From a bundle in floating point to a quantised one: observe, decide, rewrite, measure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from poss_export.calibration.acceptance import from_record, save_acceptance
from poss_export.calibration.record import Feed, Record, check_feeds, record_rounds, replay
from poss_export.config import Thresholds
from poss_export.engine_spec import GraphName
from poss_export.evaluation.checks import PROMPTS
from poss_export.evaluation.gate import require_quality
from poss_export.evaluation.quality import Trial, measure_quality
from poss_export.evaluation.text_quality import HELD_OUT, read_windows
from poss_export.evaluation.widths import measure_widths
from poss_export.manifest import (
    ACCEPTANCE,
    GRAPHS,
    TARGET_GRAPH,
    TOKENIZER,
    EmbeddingTable,
    Manifest,
    link_or_copy,
)
from poss_export.progress import Progress, Report, silent
from poss_export.quantisation import insertion
from poss_export.quantisation.decisions import Decisions, GraphRequest, Sweep, decide
from poss_export.quantisation.gains import COPY, GAIN, add_gains, untie
from poss_export.quantisation.sensitivity import sensitivities
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.smoothing import find_migrations, move_scales
from poss_export.quantisation.statistics import Statistics, observe
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession

DIALOGUES = 24  # of the samples are observed; what they bring beyond is for the acceptance
_SWEEP_TOKENS = 192
_NEW_TOKENS = 48  # a prompt
_STATIC_WINDOWS = 2


@dataclass(frozen=True)
class QuantiseRequest:
    """What is asked of a bundle's graphs, and what the result is measured by."""

    graphs: Mapping[GraphName, GraphRequest]
    samples: Record | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    text: Path = HELD_OUT
    prompts: tuple[str, ...] = PROMPTS

    def to_dict(self) -> dict[GraphName, dict[str, Any]]:
        """Return what decides how each graph is quantised, as plain JSON values."""
        samples = None if self.samples is None else self.samples.sha256
        return {
            graph: {**asdict(wanted), "layers": [list(layer) for layer in wanted.layers], "samples": samples}
            for graph, wanted in self.graphs.items()
        }


@dataclass(frozen=True)
class Source:
    """The graphs in a folder, and the manifest that describes them."""

    folder: Path
    manifest: Manifest

    def open(self, capacity: int | None = None) -> Bundle:
        """Return the bundle, with caches of `capacity` tokens if its form leaves that open."""
        table = EmbeddingTable.in_graph(self.folder / TARGET_GRAPH)
        target = replace(self.manifest.target, embedding=table)
        manifest = replace(self.manifest, target=target, capacity=capacity or self.manifest.capacity)
        return Bundle(self.folder, manifest, OrtOptions())


def quantise_bundle(
    source: Source,
    reference: Source,
    to: Path,
    request: QuantiseRequest,
    *,
    report: Report,
    progress: Progress = silent,
) -> Manifest:
    """Write quantised graphs of `source` to the folder `to`; return its manifest, files not yet listed.

    Decisions are made on `reference` and made of `source`: the same one, or another cache form of it.

    Args:
        source: the bundle in floating point.
        reference: the same target, drafter and tree in float32 with `shared` caches.
        to: an existing folder.
        request: what is asked.
        report: told what begins.
        progress: told how far a long step is.

    Raises:
        InputError: samples or text cannot be used, or a pattern fits no layer.
        QualityError: the result misses a threshold.
    """
    alone = source.folder == reference.folder
    # On the CPU a static form is many times slower, and its times say nothing of the engines made of it.
    timed = source.manifest.cache_form == "shared"
    windows = read_windows(reference.open(), request.text, None if timed else _STATIC_WINDOWS)
    with nullcontext(to) if alone else _temporary(to) as twin_folder:
        twin = Source(twin_folder, reference.manifest)  # the reference, quantised graph by graph
        _copy(reference, twin.folder, GRAPHS.keys() - request.graphs.keys())
        decided = dict[GraphName, Decisions]()
        for graph in (graph for graph in GRAPHS if graph in request.graphs):  # the target first
            wanted = request.graphs[graph]
            report(f"quantising {GRAPHS[graph]}")
            model = onnx.load(
                reference.folder / GRAPHS[graph]
            )  # before it has a second link, which it refuses
            statistics = None
            if request.samples is not None:
                statistics = _observe(reference, twin, graph, request.samples, progress)
            sweep = _sweep(reference, request.samples, progress) if graph == "target" else None
            decided[graph] = decide(model, wanted, statistics, sweep)
            _write(model, decided[graph], "qoperator", twin.folder / GRAPHS[graph])
        twin = replace(twin, manifest=_described(reference.manifest, twin.folder, decided, request))
        result = twin
        if not alone:
            _copy(source, to, GRAPHS.keys() - decided.keys())
            for graph, decisions in decided.items():
                _write(_moved(source.folder / GRAPHS[graph], decisions), decisions, "qdq", to / GRAPHS[graph])
            result = Source(to, _described(source.manifest, to, decided, request))
        quality = _measure(result, twin, reference, request, windows, report) if decided else None
        if request.samples is not None and twin.manifest.drafter is not None:
            report("calibrating acceptance")
            write_acceptance(twin, request.samples, to)
    return replace(result.manifest, quality=quality)


def write_acceptance(source: Source, samples: Record, to: Path) -> None:
    """Answer the prompts of the samples with the bundle; write how its drafter's scores are to be read."""
    prompts = [dialogue.prompt.tolist() for dialogue in samples.dialogues]
    longest = max(sum(len(r.path) for r in dialogue.rounds) for dialogue in samples.dialogues)
    with source.open() as bundle:
        record = record_rounds(bundle, prompts, longest, argv=source.manifest.argv)
    save_acceptance(from_record(record), to / ACCEPTANCE)


def _observe(
    reference: Source, twin: Source, graph: GraphName, samples: Record, progress: Progress
) -> dict[str, Statistics]:
    """Observe a graph of the reference; a drafter reads the features of the target that will run."""
    rows = max(dialogue.rows for dialogue in samples.dialogues[:DIALOGUES])
    calls = sum(len(dialogue.rounds) + 1 for dialogue in samples.dialogues[:DIALOGUES])
    if graph == "draft":
        _copy(reference, twin.folder, [graph])
    with (twin if graph == "draft" else reference).open(rows) as bundle:
        assert isinstance(bundle.target, OrtTargetSession)
        assert bundle.drafter is None or isinstance(bundle.drafter, OrtDraftSession)
        drafter = bundle.drafter if graph == "draft" else None
        fed = (feed for name, feed in replay(samples, bundle.target, drafter, DIALOGUES) if name == graph)
        counted = _counted(check_feeds(fed), calls, f"observing {GRAPHS[graph]}", progress)
        return observe(reference.folder / GRAPHS[graph], counted)


def _counted(feeds: Iterator[Feed], total: int, what: str, progress: Progress) -> Iterator[Feed]:
    for number, feed in enumerate(feeds, start=1):
        progress(what, min(number, total), total, "")
        yield feed


def _sweep(reference: Source, samples: Record | None, progress: Progress) -> Sweep | None:
    """Return what measures how sensitive activations are, on tokens of the samples."""
    if samples is None:
        return None
    dialogue = max(samples.dialogues, key=lambda dialogue: dialogue.rows)
    accepted = [int(token) for r in dialogue.rounds for token in r.tokens[list(r.path)]]
    ids = np.concatenate((dialogue.prompt, np.asarray(accepted, np.int64)))[:_SWEEP_TOKENS]
    n = len(ids)
    feed: dict[str, Any] = {
        "input_ids": ids[None],
        "position_ids": np.arange(n)[None],
        "tree_mask": np.tri(n, dtype=bool)[None],
        "past_length": np.zeros(1, np.int64),
        "logits_rows": np.arange(n)[None],
    }
    contract = contracts_of(reference.manifest)["target"].with_sizes(batch=1, capacity=n)
    feed |= {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in contract.inputs if spec.is_cache}
    what = "measuring sensitivity"

    def report(done: int, total: int) -> None:
        progress(what, done, total, "")

    return lambda model, limits: sensitivities(model, limits, feed, advance=report)


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


def _described(
    manifest: Manifest, folder: Path, decided: Mapping[GraphName, Decisions], request: QuantiseRequest
) -> Manifest:
    """Return the manifest of the graphs in `folder`."""
    asked = request.to_dict()
    quantisation = {
        graph: {"scheme": request.graphs[graph].scheme, "request": asked[graph], **decisions.to_dict()}
        for graph, decisions in decided.items()
    }
    embedding = EmbeddingTable.in_graph(folder / TARGET_GRAPH)
    target = replace(manifest.target, embedding=embedding)
    return replace(manifest, target=target, quantisation=quantisation)


def _measure(
    result: Source,
    twin: Source,
    reference: Source,
    request: QuantiseRequest,
    windows: Sequence[Ints],
    report: Report,
) -> dict[str, Any]:
    """Return the figures of the result, if they are good enough; its twin answers the prompts."""
    timed = result.manifest.cache_form == "shared"
    trial = Trial(windows, request.prompts, _NEW_TOKENS, timed)
    figures: dict[str, Any] = {"thresholds": asdict(request.thresholds)}
    if timed:  # first: plain steps have the least width that it finds
        report("measuring widths")
        figures["widths"] = measure_widths(result.open(), windows[0])
    answering = replace(twin, manifest=replace(twin.manifest, quality=figures))
    with reference.open() as exact, answering.open() as pair:
        if timed:
            figures |= measure_quality(exact, pair, pair, trial, report)
        else:
            with result.open() as bundle:
                figures |= measure_quality(exact, bundle, pair, trial, report)
    require_quality(figures, request.thresholds)
    return figures


def _copy(source: Source, to: Path, graphs: Iterable[GraphName]) -> None:
    """Put these graphs and the tokenizer into `to`, without a copy where the file system can."""
    names = [TOKENIZER, *(f"{GRAPHS[graph]}{end}" for graph in graphs for end in ("", ".data"))]
    for name in names:
        if (source.folder / name).exists() and not (to / name).exists():
            link_or_copy(source.folder / name, to / name)


@contextmanager
def _temporary(beside: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=beside) as folder:
        yield Path(folder)
