"""What a quantised bundle must reach to be finished."""

from collections.abc import Mapping
from typing import Any

from poss_export.config import Thresholds
from poss_export.errors import QualityError


def failures(figures: Mapping[str, Any], thresholds: Thresholds) -> list[str]:
    """Return a sentence for every threshold that the figures miss; without a text none of it is looked at."""
    text, rounds = figures.get("text"), figures["rounds"]
    found = []
    if text and not text["perplexity"] <= (most := thresholds.perplexity * text["reference_perplexity"]):
        found.append(
            f"perplexity is {text['perplexity']:.3f}, allowed are {most:.3f} "
            f"({thresholds.perplexity} times {text['reference_perplexity']:.3f})"
        )
    if text and not text["agreement"] >= thresholds.agreement:
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
            "precision, let rounded activations cost less, take another precision, or lower the threshold; "
            "nothing was written",
            options=("layers", "budget", "precision"),
        )
