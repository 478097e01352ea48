"""How much of a model is left in another precision: perplexity, KL divergence and agreement on a text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poss_export.errors import InputError
from poss_export.runtime.sessions.base import Ints, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.text import Text

WINDOW = 256  # tokens of text that are read at once

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextQuality:
    """A candidate's predictions of a text, beside a reference's."""

    tokens: int  # predictions compared
    reference_perplexity: float
    perplexity: float
    divergence: float  # mean KL divergence from the reference's distribution, in nats a token
    agreement: float  # share of predictions whose likeliest token is the reference's


def judge(
    windows: Sequence[Sequence[int] | Ints], reference: Iterable[Floats], candidate: Iterable[Floats]
) -> TextQuality:
    """Return the quality of a candidate on windows of ids.

    Args:
        windows: of at least two tokens.
        reference: for each window log-probabilities [rows, vocab] after its first tokens, of all or of some.
        candidate: the same rows of the model that is judged.

    Divergence and agreement are over all rows, perplexity over those whose next token the window has.
    """
    surprise = np.zeros(2)
    total, agreed, rows, predicted = 0.0, 0, 0, 0
    for ids, exact, other in zip(windows, reference, candidate, strict=True):
        following = np.asarray(ids)[1 : len(exact) + 1]
        met = (np.arange(len(following)), following)
        surprise -= [exact[met].sum(dtype=np.float64), other[met].sum(dtype=np.float64)]
        total += len(exact) * divergence(exact, other)
        agreed += int((exact.argmax(-1) == other.argmax(-1)).sum())
        rows, predicted = rows + len(exact), predicted + len(following)
    reference_perplexity, perplexity = np.exp(surprise / predicted).tolist()
    return TextQuality(rows, reference_perplexity, perplexity, max(total / rows, 0.0), agreed / rows)


def judge_text(reference: TargetSession, candidate: TargetSession, windows: Sequence[Ints]) -> TextQuality:
    """Return the quality of a target, each window read at once into empty caches."""
    return judge(windows, predictions(reference, windows), predictions(candidate, windows))


def predictions(target: TargetSession, windows: Iterable[Ints]) -> Iterator[Floats]:
    """Yield a target's log-probabilities after every token of each window, read at once into empty caches."""
    return (log_softmax(read_logits(target, ids)) for ids in windows)


def read_logits(target: TargetSession, ids: Sequence[int] | Ints) -> Floats:
    """Return a target's logits [ids, vocab] after each of the ids, read at once into empty caches."""
    target.reset()
    logits: Floats = target.forward(DraftTree.chain(ids)).logits
    return logits


def read_windows(text: Text, capacity: int, path: Path, limit: int | None = None) -> list[Ints]:
    """Return the ids of a text file in windows of at most `WINDOW` tokens, which fit `capacity`; no rest.

    Raises InputError where the file cannot be read or is shorter than one window.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected a plain text file") from error
    ids = np.asarray(text.encode(content))
    window = min(WINDOW, capacity)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise InputError(f"{str(path)!r} has {len(ids)} tokens; quality is measured on at least {window}")
    return windows[:limit]


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities of logits `[..., vocab]`."""
    shifted: Floats = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def divergence(exact: Floats, other: Floats) -> float:
    """Return the mean Kullback-Leibler divergence, in nats, of log-probabilities `[n, vocab]`."""
    return float((np.exp(exact) * (exact - other)).sum(axis=-1, dtype=np.float64).mean())
