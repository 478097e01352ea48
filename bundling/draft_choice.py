"""The drafter in a smaller precision: made, tried on the same passages as the float one, kept or not."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poss_export.bundling.export import Export
from poss_export.bundling.learning import as_record, tell, time_rounds
from poss_export.bundling.observing import observe_drafter
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.bundling.rewriting import write_graph
from poss_export.calibration.passages import Passage, play
from poss_export.calibration.record import Record
from poss_export.manifest import DRAFT_GRAPH
from poss_export.onnx_file import open_model
from poss_export.progress import Progress, Report
from poss_export.quantisation.decisions import Decisions, decide
from poss_export.quantisation.scratch import Scratch
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions

FLOAT = "float"
_OBSERVED = 8  # passages: their ranges have headroom, and observing is the slower way to play


@dataclass(frozen=True)
class DraftChoice:
    """What became of the drafter: its rounds in the precision that is kept, and why.

    `tau` and `ms` are by precision, float first; `ms` of a whole round, empty where nothing was contested.
    `decisions`: None where float is kept.
    """

    kept: str
    tau: Mapping[str, float]
    ms: Mapping[str, float]
    record: Record
    decisions: Decisions | None

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest tells, as plain JSON values."""
        why = "most tokens a second" if self.ms else "asked for"
        return {"kept": self.kept, "why": why, "tau": dict(self.tau), "ms": dict(self.ms)}


def quantise_drafter(
    graph: Path,
    made: Export,
    bundle: Bundle,
    passages: Sequence[Passage],
    request: QuantiseRequest,
    report: Report,
    progress: Progress,
) -> DraftChoice:
    """Quantise the drafter of `made`, and put its graph there if it is kept.

    Args:
        graph: the float draft graph.
        made: the bundle in the making, with the float drafter.
        bundle: `made`, entered.
        passages: of its target.
        request: what is asked.
        report: told what begins.
        progress: told how far a long step is.
    """
    scheme, drafter = request.graphs["draft"].scheme, bundle.drafter
    assert isinstance(drafter, OrtDraftSession)
    report(f"quantising {DRAFT_GRAPH}")
    statistics, rounds = observe_drafter(made, drafter, passages[:_OBSERVED], progress)
    rounds += [list(play(drafter, passage)) for passage in passages[_OBSERVED:]]
    records = {FLOAT: as_record(bundle.manifest, passages, rounds)}
    with TemporaryDirectory(dir=made.folder) as folder, ExitStack() as stack:
        small, model = Path(folder) / DRAFT_GRAPH, open_model(graph)
        with Scratch(Path(folder)) as scratch:
            decisions = decide(model, request.graphs["draft"], statistics, keep=scratch.keep)
            write_graph(model, decisions, "qoperator", small, scratch.keep)
        report("comparing drafters")
        other = stack.enter_context(_session(small, bundle))
        records[scheme] = tell(bundle.manifest, passages, other)
        tau, ms = {name: record.tau for name, record in records.items()}, dict[str, float]()
        if request.contest:
            ms = time_rounds(bundle.target, {FLOAT: drafter, scheme: other}, longest(passages))
        kept = faster(tau, ms) if request.contest else scheme
        if kept == scheme:
            _move(small, made.graph("draft"))
    return DraftChoice(kept, tau, ms, records[kept], replace(decisions, small={}) if kept == scheme else None)


def faster(tau: Mapping[str, float], ms: Mapping[str, float]) -> str:
    """Return the drafter whose rounds emit more tokens a second; of equal ones the last."""
    return max(reversed(list(tau)), key=lambda name: tau[name] / ms[name])


def longest(passages: Sequence[Passage]) -> Passage:
    """Return the passage with most tokens."""
    return max(passages, key=lambda passage: len(passage.tokens))


def _session(graph: Path, bundle: Bundle) -> OrtDraftSession:
    """Return another drafter beside the one of a bundle, not entered."""
    contract, capacity = contracts_of(bundle.manifest)["draft"], bundle.manifest.capacity
    embeddings = bundle.manifest.target.embedding.open(bundle.folder)
    return OrtDraftSession(graph, contract, capacity, OrtOptions(), embeddings)


def _move(graph: Path, to: Path) -> None:
    """Put a graph and its weights in the place of another."""
    for ending in ("", ".data"):
        graph.with_name(f"{graph.name}{ending}").replace(to.with_name(f"{to.name}{ending}"))
