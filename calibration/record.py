"""Records of calibration: what real draft/verify rounds were, kept small (docs/samples.md).

A record holds tokens, not activations: prompts, the trees that were drafted, and which nodes were
accepted. `replay` runs any precision of the same target and drafter through it, so one record serves
them all, and what the drafter reads is what that very target computes.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.config import TreeShape
from poss_export.errors import InputError, translated
from poss_export.files import parse_json, whole
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.tree import DraftTree

FORMAT_VERSION = 2

# A floor that refuses records made to try the command out; it does not promise that more would not help.
MIN_DIALOGUES, MIN_ROUNDS = 8, 64

_HEADER, _DIGEST = "header", "sha256"
_MAKE_ANOTHER = "make one with `poss-export calibrate`"


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A prompt, int64 [tokens], and the rounds of its answer."""

    prompt: Ints
    rounds: tuple[Round, ...]

    @property
    def rows(self) -> int:
        """Rows of the target's caches that its calls reach."""
        committed, reached = len(self.prompt), len(self.prompt)
        for item in self.rounds:
            reached = max(reached, committed + len(item.tree))
            committed += len(item.path)
        return reached


@dataclass(frozen=True, eq=False)
class Record:
    """Dialogues, and what they were recorded with; drafter and tree are None for target-only chains.

    The hashes are those of the checkpoints. `precision` is what the bundle computed in, `created` an
    ISO 8601 time, `argv` the command, `versions` maps library to version.
    """

    target_name: str
    target_sha256: str
    drafter_name: str | None
    drafter_sha256: str | None
    tree: TreeShape | None
    precision: str
    created: str
    argv: tuple[str, ...]
    versions: dict[str, str]
    dialogues: tuple[Dialogue, ...]

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of all dialogues."""
        return tuple(item for dialogue in self.dialogues for item in dialogue.rounds)

    @property
    def tokens(self) -> int:
        """Tokens that prefill and rounds emitted, those behind a stop token too."""
        return len(self.dialogues) + sum(len(item.path) for item in self.rounds)

    @property
    def tau(self) -> float:
        """Mean tokens emitted a round, 0 without rounds."""
        return (self.tokens - len(self.dialogues)) / len(self.rounds) if self.rounds else 0.0

    @cached_property
    def sha256(self) -> str:
        """The hash of everything in it."""
        return _digest(_header(self), _flatten(self.dialogues))


def check_record(record: Record, *, target_sha256: str, drafter_sha256: str | None, vocab_size: int) -> None:
    """Raise InputError where samples do not serve these checkpoints.

    `drafter_sha256` is that of the drafter to be calibrated, None where only the target is.
    """
    if record.target_sha256 != target_sha256:
        raise InputError(
            f"the samples are of target {record.target_name!r} with hash {record.target_sha256[:12]}, "
            f"expected {target_sha256[:12]}: record them with a bundle of this target"
        )
    if drafter_sha256 is not None and record.drafter_sha256 != drafter_sha256:
        have = "without a drafter"
        if record.drafter_sha256 is not None:
            have = f"of drafter {record.drafter_name!r} with hash {record.drafter_sha256[:12]}"
        raise InputError(
            f"the samples are {have}, expected hash {drafter_sha256[:12]}: "
            "record them with a bundle of this drafter"
        )
    dialogues, rounds = len(record.dialogues), len(record.rounds)
    if dialogues < MIN_DIALOGUES or rounds < MIN_ROUNDS:
        raise InputError(
            f"the samples have {dialogues} dialogues and {rounds} rounds, expected at least {MIN_DIALOGUES} "
            f"and {MIN_ROUNDS}: record more prompts or longer answers"
        )
    drafted = ([*r.tree.tokens, r.bonus] for r in record.rounds)
    ids = np.concatenate([*(d.prompt for d in record.dialogues), *drafted])
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(
            f"the samples hold tokens {ids.min()} to {ids.max()}, the target has {vocab_size} tokens: "
            "record them with a bundle of this target"
        )


def save_record(record: Record, path: Path) -> None:
    """Write a record in one step: nothing half-written is left, and a file that is there is replaced.

    Raises InputError where the record has no dialogues, or the file cannot be written.
    """
    if not record.dialogues:
        raise InputError("the record has no dialogues; record at least one prompt")
    header, arrays = _header(record), _flatten(record.dialogues)
    digest = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    members: dict[str, Any] = {_HEADER: text, _DIGEST: digest, **arrays}
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **members)


def load_record(path: Path) -> Record:
    """Read a record and check that it is as it was written.

    Raises:
        InputError: there is no such file, it is no record, of another format version, damaged, or empty.
    """
    if not path.is_file():
        raise InputError(f"no file of samples at {str(path)!r}; {_MAKE_ANOTHER}")
    if not _is_record(path):
        raise InputError(f"{str(path)!r} is not a record of samples, or is cut short; {_MAKE_ANOTHER}")
    damaged = f"{str(path)!r} is damaged: its hash does not match; restore it, or {_MAKE_ANOTHER}"
    with translated(InputError, damaged), np.load(path, allow_pickle=False) as file:
        return _read(path, {name: file[name] for name in file.files}, damaged)


def _read(path: Path, members: Mapping[str, NDArray[Any]], damaged: str) -> Record:
    header = parse_json(members[_HEADER].tobytes())
    if (found := header["format_version"]) != FORMAT_VERSION:
        raise InputError(
            f"{str(path)!r} has format version {found}, this release reads {FORMAT_VERSION}; "
            "record samples again, or install the release that recorded them"
        )
    arrays = {name: members[name] for name in _MEMBERS}
    if members[_DIGEST].tobytes().hex() != _digest(header, arrays):
        raise InputError(damaged)
    if not (dialogues := _split_all(arrays)):
        raise InputError(f"{str(path)!r} is empty, expected at least one dialogue; {_MAKE_ANOTHER}")
    del header["format_version"]
    tree, argv = header["tree"] and TreeShape(**header["tree"]), tuple(header["argv"])
    return Record(**{**header, "tree": tree, "argv": argv, "dialogues": dialogues})


def _is_record(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return f"{_HEADER}.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _header(record: Record) -> dict[str, Any]:
    """Return everything but the dialogues as plain JSON values."""
    values = {name: getattr(record, name) for name in Record.__dataclass_fields__ if name != "dialogues"}
    tree = None if record.tree is None else asdict(record.tree)
    return {"format_version": FORMAT_VERSION, **values, "tree": tree, "argv": list(record.argv)}


# The arrays of a file, each behind the offsets that cut it: prompts [dialogues + 1], rounds of each dialogue
# [dialogues + 1], nodes [rounds + 1], accepted nodes [rounds + 1]; and a bonus token for each round.
_MEMBERS = (
    *("prompt_offsets", "prompts", "round_offsets"),
    *("node_offsets", "tokens", "parents", "scores", "path_offsets", "paths", "bonuses"),
)


def _flatten(dialogues: Sequence[Dialogue]) -> dict[str, NDArray[Any]]:
    rounds = [item for dialogue in dialogues for item in dialogue.rounds]
    return {
        "prompt_offsets": _offsets(dialogue.prompt for dialogue in dialogues),
        "prompts": _join((dialogue.prompt for dialogue in dialogues), np.int64),
        "round_offsets": _offsets(dialogue.rounds for dialogue in dialogues),
        "node_offsets": _offsets(item.tree.tokens for item in rounds),
        "tokens": _join((item.tree.tokens for item in rounds), np.int64),
        "parents": _join((item.tree.parents for item in rounds), np.int64),
        "scores": _join((item.tree.scores for item in rounds), np.float32),
        "path_offsets": _offsets(item.path for item in rounds),
        "paths": _join((item.path for item in rounds), np.int64),
        "bonuses": np.array([item.bonus for item in rounds], np.int64),
    }


def _split_all(arrays: Mapping[str, NDArray[Any]]) -> tuple[Dialogue, ...]:
    nodes = (_split(arrays[name], arrays["node_offsets"]) for name in ("tokens", "parents", "scores"))
    paths = _split(arrays["paths"], arrays["path_offsets"])
    rounds = [
        Round(DraftTree(tokens, parents, scores), tuple(path.tolist()), bonus)
        for tokens, parents, scores, path, bonus in zip(
            *nodes, paths, arrays["bonuses"].tolist(), strict=True
        )
    ]
    bounds = pairwise(arrays["round_offsets"].tolist())
    prompts = _split(arrays["prompts"], arrays["prompt_offsets"])
    return tuple(
        Dialogue(prompt, tuple(rounds[start:end]))
        for prompt, (start, end) in zip(prompts, bounds, strict=True)
    )


def _offsets(parts: Iterable[Any]) -> Ints:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)


def _join(parts: Iterable[Any], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _split(flat: NDArray[Any], offsets: Ints) -> list[NDArray[Any]]:
    return [flat[start:end] for start, end in pairwise(offsets.tolist())]


def _digest(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in _MEMBERS:
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
