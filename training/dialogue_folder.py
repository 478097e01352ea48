"""A folder of dialogues that grows: parts that any number of processes write, and a card that counts them.

FOLDER/part-0000.npz ...   dialogues; what a number holds depends on seed, target and hardware only
FOLDER/card.json           what the parts hold, and how they were made
FOLDER/origin.json         whose dialogues these are; .claims/ holds the locks of who writes which part
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from poss_export.errors import InputError
from poss_export.files import lock, make_writable, opened, write_whole
from poss_export.progress import Progress
from poss_export.targets.checkpoint import Target
from poss_export.training.dialogues import Dialogues, part_files
from poss_export.training.hardware import keep_memory, matmul_dtype, training_device
from poss_export.training.held_apart import HeldApart
from poss_export.training.synthesis import MIN_ANSWER, Writer

SLOTS = {"cpu": 128, "cuda": 2048}  # answers written at a time
# Dialogues of a part, in slots. The last answers of a part leave slots idle, but in little time it must come
# as far as its answers: the turns that it invents come first.
FILLS = 4
SAMPLED_EVERY = 4  # parts of which one has sampled answers
CARD, ORIGIN, CLAIMS = "card.json", "origin.json", ".claims"


@dataclass(frozen=True)
class SynthesisOptions:
    """What is written: `answer_tokens` in all, or less where `minutes` have passed.

    prompts: user turns to answer instead of invented ones, each once; held_apart: turns of evaluation
    prompts, which no dialogue may ask; seed: repeats what the target invents.
    """

    answer_tokens: int = 500_000
    minutes: float | None = None
    prompts: tuple[str, ...] = ()
    held_apart: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        for name in ("answer_tokens", "minutes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be more than 0", options=(name,))
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be 0 or a positive number", options=("seed",))


def synthesise(target: Target, folder: Path, options: SynthesisOptions, report: Progress) -> dict[str, Any]:
    """Write parts into `folder` until it holds what is asked for; return its card.

    Parts that are there stay; each is written whole or not at all, by one of the processes that write here.

    Raises:
        InputError: the folder is of another target or seed or cannot be written, the target has no chat
            template, or nothing worth learning from was written.
    """
    check_writes(target)
    keep_memory()
    make_writable(folder, "choose another folder")
    with _alone(folder):
        _check_origin(
            folder, {"target": target.sha256, "seed": options.seed, "prompts": _digest(options.prompts)}
        )
    end = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    write, parts = _writer(target, options, lambda: time.monotonic() > end)
    apart = HeldApart(options.held_apart)
    for number in parts:
        path = folder / f"part-{number:04d}.npz"
        if path.exists():
            continue
        have = _answer_tokens(folder)
        if have >= options.answer_tokens or time.monotonic() > end:
            break
        report("dialogues", have, options.answer_tokens, "answer tokens")
        with _claimed(path) as part:
            if part is None:
                continue
            dialogues = write(number)
            if dialogues is not None and (free := apart.free(dialogues, target.text)).any():
                dialogues.kept(free).save(part)
            elif have == 0:
                break  # it would go on like this
    if not part_files(folder):
        raise InputError(
            f"target {target.name!r} wrote no answer of at least {MIN_ANSWER} tokens in time; give prompts "
            "that it answers at length, or more time",
            options=("prompts", "minutes"),
        )
    with _alone(folder):
        return _write_card(target, folder, options)


def check_writes(target: Target) -> None:
    """Raise InputError where a target cannot write dialogues."""
    if target.text.config.chat_template is None:
        raise InputError(
            f"target {target.name!r} has no chat template to write dialogues with: give dialogues",
            options=("dialogues",),
        )


def _writer(
    target: Target, options: SynthesisOptions, over: Callable[[], bool]
) -> tuple[Callable[[int], Dialogues | None], Iterable[int]]:
    """Return what writes the part of a number, None where nothing came of it, and the numbers there are."""
    device = training_device()
    decoder = target.load_decoder().to(device, matmul_dtype(device))
    slots = SLOTS[device.type]
    size = slots * FILLS

    def write(number: int) -> Dialogues | None:
        writer = Writer(decoder, target.text, slots, (options.seed, number), over)
        if options.prompts:
            return writer.answer(options.prompts[number * size : (number + 1) * size])
        return writer.write(size, sampled=_is_sampled(number))

    return write, range(-(-len(options.prompts) // size)) if options.prompts else count()


def _is_sampled(number: int) -> bool:
    """Return whether the invented part of this number has sampled answers."""
    return number % SAMPLED_EVERY == SAMPLED_EVERY - 1


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process says whose a folder is, or what it holds."""
    with opened(folder) as descriptor:
        lock(descriptor, wait=True)
        yield


@contextmanager
def _claimed(part: Path) -> Iterator[Path | None]:
    """Give the part to write, or None where it is there or another process writes it."""
    claim = part.parent / CLAIMS / part.stem
    claim.mkdir(parents=True, exist_ok=True)
    with opened(claim) as descriptor:
        yield part if lock(descriptor) and not part.exists() else None


def _check_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Write whose dialogues a folder holds; raise InputError where they are not those of `origin`."""
    path = folder / ORIGIN
    if not path.exists():
        if any(not entry.name.startswith(ORIGIN) for entry in folder.iterdir()):  # or half of it
            raise InputError(f"{str(folder)!r} holds other files; give a new folder")
        write_whole(path, json.dumps(origin))
    if path.read_bytes() != json.dumps(origin).encode():
        raise InputError(
            f"{str(folder)!r} holds dialogues of another target, other prompts or another seed; give another "
            "folder: several can be trained on together"
        )


def _digest(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16] if prompts else ""


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the parts of a folder."""
    return [int(part.stem.removeprefix("part-")) for part in part_files(folder)]


def _answer_tokens(folder: Path) -> int:
    return int(Dialogues.load(folder).answer_mask.sum()) if part_files(folder) else 0


def _write_card(target: Target, folder: Path, options: SynthesisOptions) -> dict[str, Any]:
    """Write what the folder holds, without repeated dialogues; return it."""
    dialogues = Dialogues.load(folder)
    answers = np.add.reduceat(dialogues.answer_mask, dialogues.offsets[:-1], dtype=np.int64)
    card = {
        "target": target.name,
        "target_sha256": target.sha256,
        "seed": options.seed,
        "parts": len(part_files(folder)),
        "sampled_parts": 0 if options.prompts else sum(map(_is_sampled, _numbers(folder))),
        "sha256": hashlib.sha256(dialogues.ids.tobytes()).hexdigest(),
        "dialogues": len(dialogues),
        "answer_tokens": int(answers.sum()),
        "held_out_dialogues": int(dialogues.validation.sum()),
        "turns_held_apart": len(options.held_apart),
        "kinds": {
            str(kind): {
                "dialogues": int((dialogues.kinds == kind).sum()),
                "answer_tokens": int(answers[dialogues.kinds == kind].sum()),
            }
            for kind in np.unique(dialogues.kinds)
        },
    }
    write_whole(folder / CARD, json.dumps(card, indent=2) + "\n")
    return card
