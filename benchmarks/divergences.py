"""Answers that part from target-only, judged as `verify` judges them (evaluation/equality.py)."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from poss_export.evaluation.equality import Divergence, Verdict, judge
from poss_export.exactness import Exactness

# By place: `position`, `gap`, `verdict`, as they stand in JSON files.
Parted = Mapping[str, Mapping[str, Any]]


def judged(
    divergence: Divergence, exactness: Exactness, chain: bool, *, beside: bool = False
) -> dict[str, Any]:
    """Return a divergence and its verdict as JSON values."""
    return {**asdict(divergence), "verdict": judge(divergence, exactness, chain, beside=beside)}


def line(place: str, found: Mapping[str, Any]) -> str:
    """Return what is printed of an answer that parts."""
    verdict: Verdict = found["verdict"]
    kind = verdict.upper() if verdict == "mismatch" else verdict
    return f"{kind}: {place}, token {found['position']}, gap {found['gap']:.2e}"


def count(parted: Iterable[Parted], verdict: Verdict) -> int:
    """Return how many answers have a verdict."""
    return sum(found["verdict"] == verdict for each in parted for found in each.values())


def totals(answers: int, parted: Iterable[Parted], equal_to: str = "") -> str:
    """Return the last line of a report: so many answers were equal, and what the others were."""
    parted = list(parted)
    equal, unclaimed = answers - sum(map(len, parted)), count(parted, "not claimed")
    ties, mismatches = count(parted, "near-tie"), count(parted, "mismatch")
    told = f"{equal} equal{equal_to}, {ties} near-ties, {mismatches} mismatches"
    return f"{told}, {unclaimed} differ where nothing is claimed" if unclaimed else told
