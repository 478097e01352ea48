"""Spec-Bench on a bundle: its questions, its answer files, and its figures without its flaws.

The formats are those of `hemingkx/Spec-Bench` (`evaluation/eval.py`, `speed.py`, `equal.py`): whoever has its
scripts can run them on the files. Both ways of decoding are asked in turns, question by question, and their
tokens are counted by one counter.
"""

import json
import statistics
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poss_export.evaluation import metrics
from poss_export.evaluation.equality import first_difference
from poss_export.progress import Progress, silent
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.request import Request

WARM_UPS = 3  # answers to the first question that are not counted
OVERALL = "overall"


@dataclass(frozen=True)
class Asked:
    """A question, and its answers turn by turn: with the drafter, and by the target alone."""

    prompt: Prompt
    ours: tuple[Generation, ...]
    plain: tuple[Generation, ...]

    @property
    def category(self) -> str:
        """What kind of question it is."""
        return self.prompt.category or "uncategorised"

    @property
    def divergence(self) -> tuple[int, int] | None:
        """The first turn, from 1, and token, from 0, that differ; None where all are equal."""
        for turn, (ours, plain) in enumerate(zip(self.ours, self.plain, strict=True), start=1):
            if (position := first_difference(ours.token_ids, plain.token_ids)) is not None:
                return turn, position
        return None


def ask(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 1024,
    repeats: int = 1,
    progress: Progress = silent,
) -> list[Asked]:
    """Ask every question in both ways, all turns, greedily; of repeats each turn keeps its median time.

    Raises:
        PromptError: a question cannot be answered.
    """
    for _ in range(WARM_UPS):
        _converse(bundle, prompts[0], max_new_tokens, target_only=False)
    found = []
    for number, prompt in enumerate(prompts, start=1):
        runs: dict[bool, list[list[Generation]]] = {False: [], True: []}
        for _ in range(repeats):
            for target_only, made in runs.items():
                made.append(_converse(bundle, prompt, max_new_tokens, target_only=target_only))
        found.append(Asked(prompt, _typical(runs[False]), _typical(runs[True])))
        progress("asking", number, len(prompts), "")
    return found


def _converse(bundle: Bundle, prompt: Prompt, tokens: int, *, target_only: bool) -> list[Generation]:
    request = Request(max_new_tokens=tokens, target_only=target_only, raw=not bundle.chats)
    return bundle.converse(prompt, **request)


def _typical(runs: Sequence[Sequence[Generation]]) -> tuple[Generation, ...]:
    """Return the turns of the first run with the median seconds of all."""
    return tuple(
        replace(
            turns[0],
            seconds=statistics.median(turn.seconds for turn in turns),
            prefill_seconds=statistics.median(turn.prefill_seconds for turn in turns),
        )
        for turns in zip(*runs, strict=True)
    )


def answer_line(asked: Asked, turns: Sequence[Generation], model_id: str) -> str:
    """Return a line of an answer file; `turns` are those of one way of decoding.

    Lists have an entry a turn, but for `accept_lengths`: tokens that each round of all turns emitted.
    """
    number = asked.prompt.id
    choice = {
        "index": 0,
        "turns": [turn.text for turn in turns],
        "decoding_steps": [turn.rounds for turn in turns],
        "new_tokens": [turn.tokens for turn in turns],
        "wall_time": [turn.seconds for turn in turns],
        "accept_lengths": [length for turn in turns for length in turn.accept_lengths],
    }
    line = {
        "question_id": int(number) if number.isdecimal() else number,
        "category": asked.category,
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "choices": [choice],
        "tstamp": time.time(),
    }
    return json.dumps(line, ensure_ascii=False)


def figures(asked: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """Return what was measured by category, in the order of the questions, and overall, as plain values.

    `tau`: mean tokens a round over all rounds (Spec-Bench), `tau_by_answer`: mean of the answers' own (PosS).
    Speeds are tokens over seconds of all answers: `tokens_per_second` prefill included, `decode_speed`
    without; `speedup` and `decode_speedup` are their ratios to target-only's. `equal`: questions whose every
    token is target-only's.
    """
    kinds = dict.fromkeys(one.category for one in asked)
    parts = {kind: [one for one in asked if one.category == kind] for kind in kinds}
    return {kind: _figures(part) for kind, part in {**parts, OVERALL: asked}.items()}


def _figures(asked: Sequence[Asked]) -> dict[str, Any]:
    ours = [turn for one in asked for turn in one.ours]
    plain = [turn for one in asked for turn in one.plain]
    speed, before = metrics.tokens_per_second(ours), metrics.tokens_per_second(plain)
    decode, decode_before = metrics.decode_speed(ours), metrics.decode_speed(plain)
    values: Mapping[str, float | None] = {
        "tau": metrics.pooled_tau(ours),
        "tau_by_answer": metrics.mean_tau(ours),
        "tokens_per_second": speed,
        "target_only_tokens_per_second": before,
        "speedup": speed / before,
        "decode_speed": decode,
        "target_only_decode_speed": decode_before,
        "decode_speedup": decode / decode_before,
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in values.items()}
    equal = sum(one.divergence is None for one in asked)
    return {"questions": len(asked), "answers": len(ours), **rounded, "equal": equal}
