"""What quantising costs a bundle, measured against the pair in floating point on held-out text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poss_export.engine_spec import GraphName
from poss_export.evaluation.latency import median_times
from poss_export.evaluation.metrics import acceptance, pooled_tau
from poss_export.evaluation.text_quality import judge_text
from poss_export.manifest import GRAPHS
from poss_export.progress import Report
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.base import Ints


@dataclass(frozen=True)
class Trial:
    """What is asked: windows of ids; prompts, each for so many new tokens; times, if `timed`."""

    windows: Sequence[Ints]
    prompts: Sequence[Prompt]
    max_new_tokens: int
    timed: bool


def measure_quality(
    reference: Bundle, bundle: Bundle, pair: Bundle, trial: Trial, report: Report
) -> dict[str, Any]:
    """Return every figure as plain JSON values; all bundles are entered, and emptied.

    Args:
        reference: the same target, drafter and tree in floating point.
        bundle: the quantised one.
        pair: what answers prompts: `bundle`, or another cache form of it.
        trial: what is asked.
        report: told what begins.
    """
    report("reading held-out text")
    figures: dict[str, Any] = {"text": asdict(judge_text(reference.target, bundle.target, trial.windows))}
    report("answering held-out prompts")
    figures["rounds"] = judge_rounds(reference, pair, trial)
    if trial.timed:
        report("timing")
        figures["ms"] = {"reference": median_times(reference), "quantised": median_times(bundle)}
    return {**figures, "bytes": sizes(reference.folder, bundle.folder)}


def judge_rounds(reference: Bundle, bundle: Bundle, trial: Trial) -> dict[str, Any]:
    """Return tau, acceptance by depth, and how many answers speculation leaves as target-only decoding's."""
    if bundle.drafter is None:
        return {}
    tokens, raw = trial.max_new_tokens, not bundle.chats
    ours, plain, exact = (
        [
            made
            for prompt in trial.prompts
            for made in one.converse(prompt, max_new_tokens=tokens, target_only=only, planning=None, raw=raw)
        ]
        for one, only in ((bundle, False), (bundle, True), (reference, False))
    )
    return {
        "prompts": len(ours),  # each turn is one
        "tokens": sum(answer.tokens for answer in ours),
        "tau": pooled_tau(ours),
        "reference_tau": pooled_tau(exact),
        "acceptance": acceptance(ours),
        "reference_acceptance": acceptance(exact),
        "equal_answers": sum(a.token_ids == b.token_ids for a, b in zip(ours, plain, strict=True)),
    }


def sizes(reference: Path, quantised: Path) -> dict[str, dict[GraphName, int]]:
    """Return the bytes of the weights of each graph in two folders."""
    return {"reference": _sizes(reference), "quantised": _sizes(quantised)}


def _sizes(folder: Path) -> dict[GraphName, int]:
    files = {graph: folder / f"{name}.data" for graph, name in GRAPHS.items()}
    return {graph: file.stat().st_size for graph, file in files.items() if file.exists()}
