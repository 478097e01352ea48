"""Greedy answers to ids, with a bundle's drafter and with its target alone."""

from collections.abc import Iterable, Sequence

from poss_export.errors import InputError
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.sessions.base import DraftSession


def answer(bundle: Bundle, ids: Sequence[int], tokens: int, *, target_only: bool) -> Generation:
    """Return the answer of at most `tokens` tokens; raises InputError without a drafter to use."""
    drafter = None if target_only else drafter_of(bundle)
    return Stream(bundle.target, drafter, bundle.text, "", ids, max_new_tokens=tokens).run()


def take_turns(
    bundle: Bundle, prompts: Iterable[Sequence[int]], tokens: int
) -> tuple[list[Generation], list[Generation]]:
    """Return the answers with the drafter, and with the target alone, made in turns, prompt by prompt."""
    ours, plain = list[Generation](), list[Generation]()
    for ids in prompts:
        ours.append(answer(bundle, ids, tokens, target_only=False))
        plain.append(answer(bundle, ids, tokens, target_only=True))
    return ours, plain


def drafter_of(bundle: Bundle) -> DraftSession:
    """Return the bundle's drafter; raises InputError where it has none."""
    if bundle.drafter is None:
        raise InputError(
            f"{bundle.folder} has no drafter, so it has no rounds; build one that has", options=("drafter",)
        )
    return bundle.drafter
