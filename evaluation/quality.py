"""What quantising costs a bundle, measured against the pair in floating point on held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.config import Thresholds
from poss_export.engine_spec import GraphName
from poss_export.errors import InputError, QualityError
from poss_export.evaluation.latency import round_times, target_times
from poss_export.manifest import GRAPHS
from poss_export.progress import Report
from poss_export.quantisation.sensitivity import divergence, log_softmax
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.sessions.base import Ints, TargetSession
from poss_export.runtime.tree import DraftTree

WINDOW = 256  # tokens of text that are read at once
WIDTHS = (1, 2, 4, 8, 16, 32)
HELD_OUT = Path(__file__).parent / "heldout.txt"  # written for this purpose; no drafter was trained on it

_CONTEXT = 128  # tokens before a call that is timed
_REPEATS = 9


@dataclass(frozen=True)
class Trial:
    """What is asked: windows of ids; prompts, each for so many new tokens; times, if `timed`."""

    windows: Sequence[Ints]
    prompts: Sequence[str]
    max_new_tokens: int
    timed: bool


def read_windows(bundle: Bundle, path: Path, limit: int | None = None) -> list[Ints]:
    """Return the ids of a text file in windows of `WINDOW` tokens; a shorter rest is left out.

    Raises InputError where the file cannot be read or is shorter than one window.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a plain text file") from error
    ids = np.asarray(bundle.encode(text, raw=True))
    window = min(WINDOW, bundle.target.capacity)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise InputError(f"{str(path)!r} has {len(ids)} tokens; quality is measured on at least {window}")
    return windows[:limit]


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
    figures: dict[str, Any] = {"text": judge_text(reference.target, bundle.target, trial.windows)}
    report("answering held-out prompts")
    figures["rounds"] = judge_rounds(reference, pair, trial)
    if trial.timed:
        report("timing")
        figures["ms"] = {"reference": _times(reference), "quantised": _times(bundle)}
    figures["bytes"] = {"reference": _sizes(reference), "quantised": _sizes(bundle)}
    return figures


def judge_text(
    reference: TargetSession, candidate: TargetSession, windows: Sequence[Ints]
) -> dict[str, float]:
    """Return both perplexities, and how far the candidate's next-token distributions are from the other's."""
    surprise = np.zeros(2)
    total, agreed, tokens = 0.0, 0, 0
    for ids in windows:
        exact, other = (_log_probabilities(session, ids) for session in (reference, candidate))
        following = (np.arange(len(ids) - 1), ids[1:])
        surprise -= [exact[following].sum(dtype=np.float64), other[following].sum(dtype=np.float64)]
        total += len(ids) * divergence(exact, other)
        agreed += int((exact.argmax(-1) == other.argmax(-1)).sum())
        tokens += len(ids)
    perplexity = np.exp(surprise / (tokens - len(windows))).tolist()
    return {
        "tokens": tokens,
        "reference_perplexity": perplexity[0],
        "perplexity": perplexity[1],
        "divergence": total / tokens,
        "agreement": agreed / tokens,
    }


def _log_probabilities(session: TargetSession, ids: Ints) -> NDArray[np.float32]:
    session.reset()
    return log_softmax(session.forward(DraftTree.chain(ids)).logits)


def judge_rounds(reference: Bundle, bundle: Bundle, trial: Trial) -> dict[str, Any]:
    """Return tau, acceptance by depth, and how many answers speculation leaves as target-only decoding's."""
    if bundle.drafter is None:
        return {}
    raw = bundle.manifest.text.chat_template is None
    ours, plain, exact = (
        [
            one.generate(prompt, max_new_tokens=trial.max_new_tokens, target_only=only, raw=raw)
            for prompt in trial.prompts
        ]
        for one, only in ((bundle, False), (bundle, True), (reference, False))
    )
    return {
        "prompts": len(trial.prompts),
        "tokens": sum(answer.tokens for answer in ours),
        "tau": _tau(ours),
        "reference_tau": _tau(exact),
        "acceptance": _acceptance(ours),
        "reference_acceptance": _acceptance(exact),
        "equal_answers": sum(a.token_ids == b.token_ids for a, b in zip(ours, plain, strict=True)),
    }


def _tau(answers: Sequence[Generation]) -> float:
    return sum(a.tokens - 1 for a in answers) / max(sum(a.rounds for a in answers), 1)


def _acceptance(answers: Sequence[Generation]) -> list[float]:
    """Return for each depth the share of rounds that accepted a token there."""
    deepest = max(len(answer.accepted_by_depth) for answer in answers)
    counts = np.zeros(deepest)
    for answer in answers:
        counts[: len(answer.accepted_by_depth)] += answer.accepted_by_depth
    shares: list[float] = (counts / max(sum(answer.rounds for answer in answers), 1)).tolist()
    return shares


def _times(bundle: Bundle) -> dict[str, Any]:
    """Return median ms of target calls by width, and of a draft round and the whole round around it."""
    capacity, drafter = bundle.target.capacity, bundle.manifest.drafter
    widths = [width for width in WIDTHS if width < capacity]
    most = max(widths) if drafter is None else max(*widths, drafter.tree.nodes + 1)  # in one call
    context = max(min(_CONTEXT, capacity - most), 1)
    vocab = bundle.manifest.target.config.vocab_size
    times = target_times(bundle.target, vocab, context, widths, _REPEATS)
    found: dict[str, Any] = {
        "target": {str(width): round(float(np.median(ms)), 3) for width, ms in times.items()}
    }
    if bundle.drafter is not None and drafter is not None:
        ids = np.random.default_rng(0).integers(0, vocab, context)
        draft, whole = round_times(bundle.target, bundle.drafter, ids, drafter.tree.depth, _REPEATS)
        found["draft"] = round(float(np.median(draft[1])), 3)
        found["round"] = round(float(np.median(whole)), 3)
    return found


def _sizes(bundle: Bundle) -> dict[GraphName, int]:
    files = {graph: bundle.folder / f"{name}.data" for graph, name in GRAPHS.items()}
    return {graph: file.stat().st_size for graph, file in files.items() if file.exists()}


def failures(figures: Mapping[str, Any], thresholds: Thresholds) -> list[str]:
    """Return a sentence for every threshold that the figures miss."""
    text, rounds = figures["text"], figures["rounds"]
    found = []
    if not text["perplexity"] <= (most := thresholds.perplexity * text["reference_perplexity"]):
        found.append(
            f"perplexity is {text['perplexity']:.3f}, allowed are {most:.3f} "
            f"({thresholds.perplexity} times {text['reference_perplexity']:.3f})"
        )
    if not text["agreement"] >= thresholds.agreement:
        found.append(f"agreement is {text['agreement']:.3f}, wanted are {thresholds.agreement}")
    if rounds and not rounds["tau"] >= (least := thresholds.tau * rounds["reference_tau"]):
        found.append(
            f"tau is {rounds['tau']:.2f}, wanted are {least:.2f} "
            f"({thresholds.tau} times {rounds['reference_tau']:.2f})"
        )
    return found


def require_quality(figures: Mapping[str, Any], thresholds: Thresholds) -> None:
    """Raise QualityError with the figures where a threshold is missed."""
    if missed := failures(figures, thresholds):
        raise QualityError(
            f"the quantised bundle is not good enough: {'; '.join(missed)}. Leave more layers in a higher "
            "precision (a smaller --budget, --layer-precision), take another --precision, or lower the "
            "threshold; nothing was written"
        )
