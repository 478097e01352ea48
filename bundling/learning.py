"""What a build learns from real rounds: passages of its target, and what a drafter makes of them."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from poss_export.bundling.observing import DIALOGUES
from poss_export.calibration.passages import Passage, answer, play, reread
from poss_export.calibration.record import Dialogue, Record
from poss_export.calibration.recording import make_record
from poss_export.calibration.short_prompts import encode_short_prompts
from poss_export.evaluation.latency import milliseconds
from poss_export.manifest import Manifest
from poss_export.progress import Progress
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.loop import read
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import DraftSession, TargetSession

SHORT, LONG = 40, 96  # tokens of an answer: LONG where ranges must be tight
_TURNS = 12  # rounds that are timed with each drafter
_VERIFIED = 8  # rows of such a round: about what a plan takes of a tree


def hear(
    bundle: Bundle, samples: Record | None, again: bool, progress: Progress, longest: int = SHORT
) -> list[Passage]:
    """Return what an entered bundle's target answers to the prompts of samples, or to our own.

    Answers have up to `longest` tokens. `again`: the target is not the one that gave the answers of the
    samples, and answers anew.
    """
    dialogues = () if samples is None else samples.dialogues[:DIALOGUES]
    prompts: Sequence[Any] = [dialogue.prompt for dialogue in dialogues] or encode_short_prompts(bundle)
    stop_ids = bundle.manifest.text.stop_ids
    passages = list[Passage]()
    for number, prompt in enumerate(prompts):
        if dialogues and not again:
            passages.append(reread(bundle.target, dialogues[number]))
        else:
            passages.append(answer(bundle.target, bundle.drafter, prompt, longest, stop_ids))
        progress("answering prompts", number + 1, len(prompts), "")
    return passages


def tell(manifest: Manifest, passages: Sequence[Passage], drafter: DraftSession | None) -> Record:
    """Return the rounds that an entered drafter makes of passages as a record; None makes plain steps."""
    return as_record(manifest, passages, [list(play(drafter, passage)) for passage in passages])


def as_record(manifest: Manifest, passages: Sequence[Passage], rounds: Sequence[Sequence[Round]]) -> Record:
    """Return passages and their rounds as a record of the bundle that has this manifest."""
    dialogues = (
        Dialogue(passage.tokens[: passage.prompt], tuple(done))
        for passage, done in zip(passages, rounds, strict=True)
    )
    return make_record(manifest, dialogues, manifest.argv)


def time_rounds(
    target: TargetSession, drafters: Mapping[str, DraftSession], passage: Passage
) -> dict[str, float]:
    """Return the median milliseconds of drafting and verifying behind half a passage, by drafter.

    Entered drafters take turns, so that a slow moment of the machine hits them alike.
    """
    rows = len(passage.features) // 2  # behind all of them a tree may not fit the caches
    times = {name: list[float]() for name in drafters}
    target.reset()
    for _ in read(target, passage.tokens[:rows]):
        pass
    for drafter in drafters.values():
        drafter.reset()
        drafter.propose(passage.tokens[1 : rows + 1], passage.features[:rows])

    def one_round(drafter: DraftSession) -> None:
        drafter.trim(rows - 1)
        tree = drafter.propose(passage.tokens[rows : rows + 1], passage.features[rows - 1 : rows])
        target.forward(tree.first(min(_VERIFIED, target.room())))

    for turn in range(-1, _TURNS):  # the first warms up
        for name, drafter in drafters.items():
            took = milliseconds(partial(one_round, drafter))
            times[name] += [took] if turn >= 0 else []
    return {name: median(values) for name, values in times.items()}
