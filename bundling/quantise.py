"""From graphs in floating point to a bundle's own: learn from rounds, decide, rewrite, measure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poss_export.bundling.comparing import read_in_pieces
from poss_export.bundling.draft_choice import DraftChoice, quantise_drafter
from poss_export.bundling.export import Export
from poss_export.bundling.learning import LONG, SHORT, hear, tell
from poss_export.bundling.observing import make_sweep, observe_target
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.bundling.rewriting import describe, write_graph, write_other
from poss_export.calibration.acceptance_fit import from_record
from poss_export.calibration.record import Record
from poss_export.engine_spec import GraphName
from poss_export.evaluation.pieces import Step
from poss_export.evaluation.quality import Trial, measure_quality, sizes
from poss_export.evaluation.text_quality import judge, log_softmax, predictions, read_windows
from poss_export.evaluation.thresholds import require_quality
from poss_export.evaluation.widths import measure_widths
from poss_export.manifest import ACCEPTANCE, GRAPHS, TARGET_GRAPH, Manifest
from poss_export.onnx_file import open_model
from poss_export.progress import Progress, Report, silent
from poss_export.quantisation.decisions import Decisions, decide
from poss_export.quantisation.scratch import Scratch
from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.tree import DraftTree

_NEW_TOKENS = 32  # a prompt
_FEW_WINDOWS = 2  # where reading is slow


@dataclass(frozen=True)
class _Work:
    """What every step reads: the export in floating point, the one in the making, and what is asked."""

    reference: Export
    made: Export
    request: QuantiseRequest
    report: Report
    progress: Progress
    whole: bool  # whether memory holds the reference, to be run


def quantise_bundle(
    source: Export,
    reference: Export,
    to: Path,
    request: QuantiseRequest,
    *,
    report: Report,
    progress: Progress = silent,
    whole: bool = True,
) -> Manifest:
    """Write a bundle of `source`, quantised as asked, to the folder `to`; return its manifest without files.

    Decisions are made on `reference` and made of `source`: the same one, or another cache form of it. With a
    drafter the bundle gets its acceptance too.

    Args:
        source: the export in floating point.
        reference: the same target, drafter and tree, as the CPU runs them.
        to: an existing folder.
        request: what is asked.
        report: told what begins.
        progress: told how far a long step is.
        whole: whether memory holds the reference, to be run: otherwise a text is read with it piece by
            piece, and neither answers nor times are measured beside it.

    Raises:
        InputError: samples or text cannot be used, or a pattern fits no layer.
        QualityError: the result misses a threshold.
    """
    same = source.folder == reference.folder
    with TemporaryDirectory(dir=to) as temporary:
        folder = to if same else Path(temporary)
        work = _Work(reference, Export(folder, reference.manifest), request, report, progress, whole)
        shared, decided = _quantise_shared(work, to)
        result = shared
        if not same:
            result = describe(write_other(source, to, decided), decided, request)
        quality = _judge(work, result, shared) if "target" in decided else None
    return replace(result.manifest, quality=quality, calibration=shared.manifest.calibration)


def _quantise_shared(work: _Work, to: Path) -> tuple[Export, dict[GraphName, Decisions]]:
    """Quantise the reference as its CPU runs it; return that, and what was decided of its graphs.

    The acceptance of its drafter goes to the folder `to`.
    """
    reference, request = work.reference, work.request
    decided = dict[GraphName, Decisions]()
    if "target" in request.graphs:
        decided["target"] = _quantise_target(work)
    reference.link([graph for graph in GRAPHS if graph not in decided], work.made.folder)
    made = describe(work.made, decided, request)
    if made.manifest.drafter is None:
        return made, decided
    record, choice = _learn(replace(work, made=made), again="target" in decided)
    work.report("calibrating acceptance")
    from_record(record).save(to / ACCEPTANCE)
    if choice is not None and choice.decisions is not None:
        decided["draft"] = choice.decisions
    made = describe(work.made, decided, request)
    calibration = _calibration(request, record, choice)
    return replace(made, manifest=replace(made.manifest, calibration=calibration)), decided


def _quantise_target(work: _Work) -> Decisions:
    """Write the quantised target, and return what was decided of it."""
    reference, wanted, samples = work.reference, work.request.graphs["target"], work.request.samples
    helped = reference.manifest.drafter is not None and work.whole
    if samples is None and (helped or wanted.need_samples):
        work.report("recording rounds")
        with reference.open() as bundle:
            longest = LONG if wanted.coarse else SHORT
            passages = hear(bundle, None, False, work.progress, longest)
            # Ranges of one digit must hold what rejected rows bring, too.
            samples = tell(bundle.manifest, passages, bundle.drafter if wanted.coarse else None)
    work.report(f"quantising {TARGET_GRAPH}")
    statistics, sweep = None, None
    if samples is not None:
        statistics = observe_target(reference, samples, work.progress)
        sweep = make_sweep(reference, samples, work.progress)
    model = open_model(reference.graph("target"))
    with Scratch(work.made.folder) as scratch:
        decisions = decide(model, wanted, statistics, sweep, scratch.keep)
        write_graph(model, decisions, "qoperator", work.made.graph("target"), scratch.keep)
    return replace(decisions, small={})


def _learn(work: _Work, again: bool) -> tuple[Record, DraftChoice | None]:
    """Return the rounds of the bundle's drafter; where it is to be quantised, also what became of that.

    `again`: the target answers anew.
    """
    with work.made.open() as bundle:
        work.report("answering prompts to learn from")
        passages = hear(bundle, work.request.samples, again, work.progress)
        if "draft" not in work.request.graphs:
            return tell(bundle.manifest, passages, bundle.drafter), None
        draft = work.reference.graph("draft")
        choice = quantise_drafter(
            draft, work.made, bundle, passages, work.request, work.report, work.progress
        )
    if not again and not work.request.contest:
        tau, exact = choice.tau[choice.kept], choice.tau["float"]
        require_quality({"rounds": {"tau": tau, "reference_tau": exact}}, work.request.thresholds)
    return choice.record, choice


def _calibration(request: QuantiseRequest, record: Record, choice: DraftChoice | None) -> dict[str, Any]:
    """Return what the manifest tells of the rounds, and of the drafter that was tried on them."""
    found: dict[str, Any] = {
        "request": request.calibration_request,
        "dialogues": len(record.dialogues),
        "rounds": len(record.rounds),
        "tau": record.tau,
    }
    if choice is not None:
        found["drafter"] = {**choice.to_dict(), "request": request.to_dict()["draft"]}
    return found


def _timed(export: Export) -> bool:
    """Return whether times on this CPU say something.

    On the CPU a static form is many times slower, and its times say nothing of the engines made of it.
    """
    return export.manifest.cache_form == "shared"


def _judge(work: _Work, result: Export, shared: Export) -> dict[str, Any]:
    """Return the figures of the result, if they are good enough; its `shared` form answers the prompts."""
    request, timed = work.request, _timed(result)
    bundle = work.reference.open()
    windows = read_windows(
        bundle.text, bundle.target.capacity, request.text, None if timed and work.whole else _FEW_WINDOWS
    )
    figures: dict[str, Any] = {"request": request.quality_request}
    if timed:  # first: plain steps have the least width that it finds
        work.report("measuring widths")
        figures["widths"] = measure_widths(result.open(), windows)
    if work.whole:
        answering = replace(shared, manifest=replace(shared.manifest, quality=figures))
        figures |= _measure(work, result, answering, Trial(windows, request.prompts, _NEW_TOKENS, timed))
    else:
        figures |= _measure_in_pieces(work, result, windows)
    require_quality(figures, request.thresholds)
    return figures


def _measure(work: _Work, result: Export, answering: Export, trial: Trial) -> dict[str, Any]:
    """Return the figures of quality; `answering` answers prompts: the result, or another form of it."""
    with work.reference.open() as exact, answering.open() as pair:
        if trial.timed:
            return measure_quality(exact, pair, pair, trial, work.report)
        with result.open() as bundle:
            return measure_quality(exact, bundle, pair, trial, work.report)


def _measure_in_pieces(work: _Work, result: Export, windows: Sequence[Ints]) -> dict[str, Any]:
    """Return the figures of quality that need no loaded reference."""
    steps, activity = [Step(DraftTree.chain(ids), ()) for ids in windows], "reading held-out text"
    work.report(f"{activity} piece by piece")
    exact = read_in_pieces(work.reference.folder, work.reference.manifest, steps, activity, work.progress)
    with result.open() as bundle:
        predicted = predictions(bundle.target, windows)
        text = judge(windows, (log_softmax(logits) for _, logits in exact), predicted)
    bytes_ = sizes(work.reference.folder, result.folder)
    return {"text": asdict(text), "rounds": {}, "bytes": bytes_, "in_pieces": True}
