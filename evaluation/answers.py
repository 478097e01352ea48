"""Answers to ids, with a bundle's drafter and with its target alone."""

from collections.abc import Iterable, Sequence
from functools import partial

from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.planning.planner import ADAPTIVE, Planning, WholeTrees
from poss_export.runtime.sampling import GREEDY, Sampling


def answer(
    bundle: Bundle,
    ids: Sequence[int],
    tokens: int,
    *,
    target_only: bool,
    sampling: Sampling = GREEDY,
    planning: Planning | None = ADAPTIVE,
) -> Generation:
    """Return the answer of at most `tokens` tokens; the arguments are those of `Bundle.stream`."""
    return Stream(
        bundle.target,
        None if target_only else bundle.drafter,
        bundle.text,
        "",
        ids,
        planner=WholeTrees if target_only else partial(bundle.planners.planner, planning),
        max_new_tokens=tokens,
        sampling=sampling,
    ).run()


def take_turns(
    bundle: Bundle,
    prompts: Iterable[Sequence[int]],
    tokens: int,
    sampling: Sampling = GREEDY,
    planning: Planning | None = ADAPTIVE,
) -> tuple[list[Generation], list[Generation]]:
    """Return speculative answers, and those of the target alone, made in turns, prompt by prompt."""
    ours, plain = list[Generation](), list[Generation]()
    for ids in prompts:
        for answers, target_only in ((ours, False), (plain, True)):
            answers.append(
                answer(bundle, ids, tokens, target_only=target_only, sampling=sampling, planning=planning)
            )
    return ours, plain
