"""Recording: a bundle answers prompts, and every round is noted."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from poss_export.calibration.record import Dialogue, Record
from poss_export.errors import InputError
from poss_export.machine import versions
from poss_export.progress import Progress, silent
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import PREFILL_CHUNK, check_prompt
from poss_export.runtime.loop import speculate
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.sessions.base import TargetOutput
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import Verdict, Verify, verifier


def open_to_record(folder: Path, threads: int | None = None, with_drafter: bool = False) -> Bundle:
    """Open a bundle for `record_rounds`; enter the result.

    Raises:
        InputError: no drafter where one is needed.
        PossExportError: as `open_bundle`.
    """
    bundle = open_bundle(folder, threads=threads)
    if with_drafter and bundle.drafter is None:
        raise InputError(
            f"{str(folder)!r} has no drafter, whose acceptance could be calibrated; build with one"
        )
    return bundle


def record_rounds(
    bundle: Bundle,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    argv: Sequence[str] = (),
    progress: Progress = silent,
) -> Record:
    """Answer prompts, given as ids, greedily with an entered bundle and note every round.

    A round that passes `max_new_tokens` or a stop token is noted whole.

    Raises:
        InputError: there is no prompt, one cannot be used, or `max_new_tokens` is below 1.
    """
    if not prompts:
        raise InputError("no prompts to record rounds of; give at least one")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    for prompt in prompts:
        check_prompt(prompt, bundle.target.capacity)
    dialogues = []
    for done, prompt in enumerate(prompts, start=1):
        dialogues.append(_record_dialogue(bundle, prompt, max_new_tokens))
        progress("recording", done, len(prompts), f"{sum(len(d.rounds) for d in dialogues)} rounds")
    target, drafter = bundle.manifest.target, bundle.manifest.drafter
    return Record(
        target_name=target.name,
        target_sha256=target.sha256,
        drafter_name=None if drafter is None else drafter.name,
        drafter_sha256=None if drafter is None else drafter.sha256,
        tree=None if drafter is None else drafter.tree,
        precision=bundle.manifest.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=tuple(argv),
        versions=versions("onnxruntime", "numpy"),
        dialogues=tuple(dialogues),
    )


def _record_dialogue(bundle: Bundle, prompt: Sequence[int], max_new_tokens: int) -> Dialogue:
    for session in (bundle.target, bundle.drafter):
        if session is not None:
            session.reset()
    rounds = list[Round]()
    emitted, stop_ids = 0, set(bundle.manifest.text.stop_ids)
    verify = _noting(verifier(Sampling()), rounds)
    for tokens in speculate(bundle.target, bundle.drafter, prompt, verify, PREFILL_CHUNK):
        emitted += len(tokens)
        if emitted >= max_new_tokens or stop_ids.intersection(tokens):
            break
    return Dialogue(np.array(prompt, np.int64), tuple(rounds[1:]))  # the first verdict ends the prompt


def _noting(verify: Verify, rounds: list[Round]) -> Verify:
    """Return `verify` that also notes every tree with its accepted path."""

    def note(tree: DraftTree, output: TargetOutput) -> Verdict:
        verdict = verify(tree, output)
        rounds.append(Round(tree, tuple(verdict.path), verdict.bonus))
        return verdict

    return note
