"""How much of a model is left in another precision: perplexity, KL divergence and agreement on a text.

Every engine reads the same windows of the text, each from empty caches and in one call, and gives its logits
after every token. What is compared are the predictions of the window's next tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants import open_genai, open_llama
from benchmarks.workers import Setup

Floats = NDArray[np.float32]
Scorer = Callable[[list[int]], Floats]  # ids to logits [ids, vocabulary], after each of them


@dataclass(frozen=True)
class Quality:
    """Figures of a model's predictions; `kl` and `agreement` are against a reference's."""

    perplexity: float
    kl: float  # mean divergence of this model's distribution from the reference's, in nats a token
    agreement: float  # share of predictions whose likeliest token is the reference's


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """Return `ids` in windows of `length`; a single token at the end is left out, it predicts nothing."""
    return [list(ids[start : start + length]) for start in range(0, len(ids) - 1, length)]


def predictions(scorer: Scorer, texts: Iterable[list[int]]) -> Iterator[Floats]:
    """Yield, for each window, the logarithms of the chances of every token to be the next one."""
    for ids in texts:
        yield log_probabilities(scorer(ids)[:-1])


def log_probabilities(logits: Floats) -> Floats:
    """Return log-softmax over the last axis, computed in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted.astype(np.float32)


def judge(texts: Sequence[list[int]], reference: Sequence[Floats], found: Iterable[Floats]) -> Quality:
    """Return the quality of `found` predictions of `texts`, one array a window as in `predictions`."""
    surprise, divergence, same = list[Floats](), list[Floats](), list[NDArray[np.bool_]]()
    for ids, p, q in zip(texts, reference, found, strict=True):
        surprise.append(-q[np.arange(len(q)), ids[1:]])
        divergence.append((np.exp(p) * (p - q)).sum(axis=1))
        same.append(p.argmax(axis=1) == q.argmax(axis=1))
    means = (float(np.concatenate(parts).mean(dtype=np.float64)) for parts in (surprise, divergence, same))
    mean_surprise, kl, agreement = means
    return Quality(float(np.exp(mean_surprise)), max(kl, 0.0), agreement)  # rounding may leave it below 0


def bundle_logits(setup: Setup) -> Scorer:
    """Our bundle's target."""
    from poss_export.evaluation.laws import append
    from poss_export.runtime.bundle import open_bundle

    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends

    def logits(ids: list[int]) -> Floats:
        bundle.target.reset()
        found: Floats = append(bundle.target, ids).logits
        return found

    return logits


def genai_logits(setup: Setup) -> Scorer:
    """onnxruntime-genai."""
    import onnxruntime_genai as og

    model = open_genai(setup)

    def logits(ids: list[int]) -> Floats:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=setup.capacity)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        found: Floats = generator.get_output("logits")[0]
        return found.copy()  # the generator, which goes now, may own this memory

    return logits


def llama_logits(setup: Setup) -> Scorer:
    """llama.cpp with its own choice of a cache."""
    model: Any = open_llama(setup, logits_all=True)

    def logits(ids: list[int]) -> Floats:
        model.reset()
        model.eval(ids)
        found: Floats = model.scores[: len(ids)]
        return found

    return logits
