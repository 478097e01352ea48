"""Answers to ids, with a bundle's drafter and with its target alone."""

from collections.abc import Iterable, Sequence

from poss_export.errors import InputError
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sessions.base import DraftSession


def answer(
    bundle: Bundle, ids: Sequence[int], tokens: int, *, target_only: bool, sampling: Sampling = GREEDY
) -> Generation:
    """Return the answer of at most `tokens` tokens; raises InputError without a drafter to use."""
    drafter = None if target_only else drafter_of(bundle)
    stream = Stream(bundle.target, drafter, bundle.text, "", ids, max_new_tokens=tokens, sampling=sampling)
    return stream.run()


def take_turns(
    bundle: Bundle, prompts: Iterable[Sequence[int]], tokens: int, sampling: Sampling = GREEDY
) -> tuple[list[Generation], list[Generation]]:
    """Return the answers with the drafter, and with the target alone, made in turns, prompt by prompt."""
    ours, plain = list[Generation](), list[Generation]()
    for ids in prompts:
        for answers, target_only in ((ours, False), (plain, True)):
            answers.append(answer(bundle, ids, tokens, target_only=target_only, sampling=sampling))
    return ours, plain


def drafter_of(bundle: Bundle) -> DraftSession:
    """Return the bundle's drafter; raises InputError where it has none."""
    if bundle.drafter is None:
        raise InputError(
            f"{bundle.folder} has no drafter, so it has no rounds; build one that has", options=("drafter",)
        )
    return bundle.drafter
