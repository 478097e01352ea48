"""Logits of our bundles and of peers after every token of a text, for `evaluation/text_quality.py` to judge.

Every engine reads the same windows of the text, each from empty caches and in one call. What is compared are
the predictions of the window's next tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.peer_engines import open_genai, open_llama
from benchmarks.workers import Setup
from poss_export.evaluation.text_quality import Floats, log_softmax, read_logits

Scorer = Callable[[list[int]], Floats]  # ids to logits [ids, vocabulary], after each of them


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """Return `ids` in windows of `length`; a single token at the end is left out, it predicts nothing."""
    return [list(ids[start : start + length]) for start in range(0, len(ids) - 1, length)]


def predictions(scorer: Scorer, texts: Iterable[list[int]]) -> Iterator[Floats]:
    """Yield, for each window, the log-probabilities of every token to be the next one."""
    for ids in texts:
        yield log_softmax(scorer(ids)[:-1])


def bundle_logits(setup: Setup) -> Scorer:
    """Our bundle's target."""
    from poss_export.runtime.bundle import open_bundle

    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends
    return lambda ids: read_logits(bundle.target, ids)


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
