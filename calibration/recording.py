"""Recording: a bundle answers prompts, and every round is noted."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from poss_export.calibration.record import Dialogue, Record
from poss_export.errors import InputError
from poss_export.machine import versions
from poss_export.manifest import Manifest
from poss_export.progress import Progress, silent
from poss_export.prompts import Prompt, Refused
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import Stream


def open_to_record(folder: Path, threads: int | None = None, with_drafter: bool = False) -> Bundle:
    """Open a bundle for `record_prompts`; enter the result.

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


def record_prompts(
    bundle: Bundle,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    refused: Refused | None = None,
    argv: Sequence[str] = (),
    progress: Progress = silent,
) -> Record:
    """Answer every turn of prompts greedily with an entered bundle and note every round.

    A turn is a dialogue of the record, whose prompt is all that was said before the answer, in the chat
    template where the target has one. A round that passes `max_new_tokens` or a stop token is noted whole.
    `refused` takes prompts that cannot be answered; without it, or where all are such, one is an error.

    Raises:
        InputError: there is no prompt, one cannot be used, or `max_new_tokens` is below 1.
    """
    refused = refused or Refused(1)
    conversations = list[Iterable[Stream]]()
    for prompt in prompts:
        turns = bundle.conversation(
            prompt,
            max_new_tokens=max_new_tokens,
            target_only=bundle.drafter is None,
            planning=None,
            raw=not bundle.chats,
        )
        with refused.noted():  # the first turn of each is checked before any is answered
            conversations.append(chain([next(turns)], turns))
    return _record(bundle, conversations, refused, argv, progress)


def record_rounds(
    bundle: Bundle,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    argv: Sequence[str] = (),
    progress: Progress = silent,
) -> Record:
    """Do likewise with prompts that are given as ids; each is a dialogue of its own."""
    streams = [
        Stream(bundle.target, bundle.drafter, bundle.text, "", ids, max_new_tokens=max_new_tokens)
        for ids in prompts
    ]
    return _record(bundle, [[stream] for stream in streams], Refused(1), argv, progress)


def _record(
    bundle: Bundle,
    conversations: Sequence[Iterable[Stream]],
    refused: Refused,
    argv: Sequence[str],
    progress: Progress,
) -> Record:
    if not conversations:
        refused.check()
        raise InputError("no prompts to record rounds of; give at least one")
    dialogues = list[Dialogue]()
    for done, streams in enumerate(conversations, start=1):
        with refused.noted():
            for stream in streams:
                dialogues.append(_note(stream))
        progress("recording", done, len(conversations), f"{sum(len(d.rounds) for d in dialogues)} rounds")
    return make_record(bundle.manifest, dialogues, argv)


def make_record(manifest: Manifest, dialogues: Iterable[Dialogue], argv: Sequence[str] = ()) -> Record:
    """Return a record of dialogues that the bundle of a manifest made now."""
    target, drafter = manifest.target, manifest.drafter
    return Record(
        target_name=target.name,
        target_sha256=target.sha256,
        drafter_name=None if drafter is None else drafter.name,
        drafter_sha256=None if drafter is None else drafter.sha256,
        tree=None if drafter is None else drafter.tree,
        precision=manifest.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=tuple(argv),
        versions=versions("onnxruntime", "numpy"),
        dialogues=tuple(dialogues),
    )


def _note(stream: Stream) -> Dialogue:
    stream.run()
    return Dialogue(stream.prompt_ids, stream.rounds[1:])  # the first is the prompt's
