"""Samples for calibration: what real draft/verify rounds feed the graphs, kept small and played again.

A record holds tokens, not activations: prompts, the trees that were drafted, and which nodes were
accepted. `replay` runs any precision of the same target and drafter through it, so one record serves
them all, and what the drafter reads is what that very target computes.
"""

import hashlib
import json
import platform
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.config import TreeShape
from poss_export.contract import PAST
from poss_export.engine_spec import GraphName
from poss_export.errors import BackendError, InputError
from poss_export.manifest import read_manifest
from poss_export.progress import Progress, silent
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.generation import check_prompt
from poss_export.runtime.loop import PREFILL_CHUNK, speculate
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.sequence import Sequence as Answer
from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtTargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

FORMAT_VERSION = 1

# A floor that refuses records made to try the command out; it does not promise that more would not help.
MIN_DIALOGUES, MIN_ROUNDS = 8, 64

Feed = Mapping[str, NDArray[Any]]  # every input of a graph, by name

_HEADER, _DIGEST = "header", "sha256"
_MAKE_ANOTHER = "make one with `poss-export calibrate`"


@dataclass(frozen=True, eq=False)
class Round:
    """One verified tree.

    tokens, parents: int64 [nodes], root first; scores: float32 [nodes], cumulative log-probability; as in
    `DraftTree`. path: numbers of the accepted nodes, the root's 0 first.
    """

    tokens: Ints
    parents: Ints
    scores: NDArray[np.float32]
    path: tuple[int, ...]

    @cached_property
    def tree(self) -> DraftTree:
        """The tree that was verified."""
        return DraftTree(self.tokens, self.parents, self.scores)


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
            reached = max(reached, committed + len(item.tokens))
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


def check_output(path: Path, force: bool, others: Sequence[Path] = ()) -> None:
    """Raise InputError where no file can be written to `path`, or another output goes there too."""
    if path in others:
        raise InputError(f"{str(path)!r} is named for two outputs; name two files")
    if not path.parent.is_dir():
        raise InputError(f"no folder {str(path.parent)!r} for {path.name!r}; make it first")
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name a file")
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} exists: choose another file, or replace it with --force")


def open_to_record(folder: Path, threads: int | None = None, with_drafter: bool = False) -> Bundle:
    """Open a bundle for `record_rounds`; enter the result.

    Raises:
        BackendError: ONNX Runtime does not run this bundle on a CPU.
        InputError: no such folder, or no drafter where one is needed.
        BundleError: as `open_bundle`.
    """
    manifest = read_manifest(folder)
    if with_drafter and manifest.drafter is None:
        raise InputError(
            f"{str(folder)!r} has no drafter, whose acceptance could be calibrated; build with one"
        )
    if manifest.precision == "bf16":
        raise BackendError(
            f"{str(folder)!r} is in bf16, in which no samples can be recorded here: record them with a "
            "bundle of the same target and drafter in fp32; they serve every precision"
        )
    return open_bundle(folder, threads=threads)


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
        versions=_versions(),
        dialogues=tuple(dialogues),
    )


def _record_dialogue(bundle: Bundle, prompt: Sequence[int], max_new_tokens: int) -> Dialogue:
    for session in (bundle.target, bundle.drafter):
        if session is not None:
            session.reset()
    rounds = list[Round]()
    stop_ids = set(bundle.manifest.text.stop_ids)
    answer = Answer(np.array(prompt, np.int64), verifier(Sampling()))
    for made in speculate(bundle.target, bundle.drafter, answer):
        rounds.append(Round(made.tree.tokens, made.tree.parents, made.tree.scores, made.path))
        if answer.emitted >= max_new_tokens or stop_ids.intersection(made.tokens.tolist()):
            break
    return Dialogue(answer.prompt, tuple(rounds[1:]))  # the first is the prompt's


def check_record(
    record: Record,
    *,
    target_sha256: str,
    drafter_sha256: str | None,
    vocab_size: int,
    min_dialogues: int = MIN_DIALOGUES,
    min_rounds: int = MIN_ROUNDS,
) -> None:
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
    if dialogues < min_dialogues or rounds < min_rounds:
        raise InputError(
            f"the samples have {dialogues} dialogues and {rounds} rounds, expected at least {min_dialogues} "
            f"and {min_rounds}: record more prompts or longer answers"
        )
    ids = np.concatenate([*(d.prompt for d in record.dialogues), *(r.tokens for r in record.rounds)])
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(
            f"the samples hold tokens {ids.min()} to {ids.max()}, the target has {vocab_size} tokens: "
            "record them with a bundle of this target"
        )


def replay(
    record: Record, target: OrtTargetSession, drafter: OrtDraftSession | None, limit: int | None = None
) -> Iterator[tuple[GraphName, Feed]]:
    """Run entered sessions through the first `limit` dialogues; yield what each call was fed.

    The calls are those of the loop: the prompt in chunks, then each round's proposal and verification. The
    recorded trees and paths are taken whatever these sessions would say, and the drafter reads the features
    that this target computes. Without a drafter only the target's calls come.

    A feed is a view of the session's own buffers and valid until the next item; cache rows behind its
    `past_length` are provisional. Leave the sessions alone until the last item.

    Raises:
        InputError: a dialogue does not fit the capacity.
    """
    dialogues = record.dialogues[:limit]
    if (rows := max((dialogue.rows for dialogue in dialogues), default=0)) > target.capacity:
        raise InputError(
            f"the samples need a capacity of {rows} tokens, the bundle's is {target.capacity}: "
            "record them with this bundle, or build with a larger --capacity"
        )
    for dialogue in dialogues:
        yield from _replay_dialogue(dialogue, target, drafter)


def _replay_dialogue(
    dialogue: Dialogue, target: OrtTargetSession, drafter: OrtDraftSession | None
) -> Iterator[tuple[GraphName, Feed]]:
    """Yield the calls of `runtime.loop.speculate`, whose letters these are; its choices are recorded here."""
    for session in (target, drafter):
        if session is not None:
            session.reset()
    prompt = dialogue.prompt
    for start in range(0, len(prompt), PREFILL_CHUNK):
        ids = prompt[start : start + PREFILL_CHUNK]
        end = start + len(ids)
        f = target.forward(DraftTree.chain(ids), np.array([len(ids) - 1])).features
        yield "target", target.last_feed()
        target.commit(range(len(ids)))
        if drafter is not None and end < len(prompt):
            drafter.propose(prompt[start + 1 : end + 1], f)
            yield "draft", drafter.last_feed()
    t = ids[1:]  # without the root, which the round's tree begins with
    for item in dialogue.rounds:
        if drafter is not None:
            drafter.propose(np.append(t, item.tokens[0]), f)
            yield "draft", drafter.last_feed()
        output = target.forward(item.tree)
        yield "target", target.last_feed()
        path = list(item.path)
        target.commit(path)
        t, f = item.tokens[path[1:]], output.features[path]


def check_feeds(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Yield feeds that a graph can be calibrated with; caches are looked at up to `past_length`.

    Raises:
        InputError: there is no feed, or one holds a value that is not finite.
    """
    number = 0
    for number, feed in enumerate(feeds, start=1):
        for name, values in feed.items():
            if name.startswith(f"{PAST}.") and "past_length" in feed:
                values = values[..., : int(feed["past_length"].max()), :]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(
                    f"sample {number}: {name} holds NaN or infinity, expected finite values: "
                    "leave the sample out, or record samples again"
                )
        yield feed
    if number == 0:
        raise InputError(
            "no samples: the feeds ended before the first one; an iterator can be read only once, so give "
            "a list, or a new iterator each time"
        )


def save_record(record: Record, path: Path) -> None:
    """Write a record in one step: nothing half-written is left, and a file that is there is replaced.

    Raises InputError where the record has no dialogues, or the file cannot be written.
    """
    if not record.dialogues:
        raise InputError("the record has no dialogues; record at least one prompt")
    header, arrays = _header(record), _flatten(record.dialogues)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            digest = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
            text = np.frombuffer(json.dumps(header).encode(), np.uint8)
            members: dict[str, Any] = {_HEADER: text, _DIGEST: digest, **arrays}
            np.savez_compressed(file, **members)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r} ({error}): choose another output file") from error
    finally:
        partial.unlink(missing_ok=True)


def load_record(path: Path) -> Record:
    """Read a record and check that it is as it was written.

    Raises:
        InputError: there is no such file, it is no record, of another format version, damaged, or empty.
    """
    if not path.is_file():
        raise InputError(f"no file of samples at {str(path)!r}; {_MAKE_ANOTHER}")
    if not _is_record(path):
        raise InputError(f"{str(path)!r} is not a record of samples, or is cut short; {_MAKE_ANOTHER}")
    damaged = InputError(f"{str(path)!r} is damaged: its hash does not match; restore it, or {_MAKE_ANOTHER}")
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
        header = json.loads(members[_HEADER].tobytes())
        found = header["format_version"]
    except Exception as error:  # numpy, zipfile, zlib and json raise a dozen kinds on what is spoilt
        raise damaged from error
    if found != FORMAT_VERSION:
        raise InputError(
            f"{str(path)!r} has format version {found}, this release reads {FORMAT_VERSION}; "
            "record samples again, or install the release that recorded them"
        )
    arrays = {name: members[name] for name in _MEMBERS}
    if members[_DIGEST].tobytes().hex() != _digest(header, arrays):
        raise damaged
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
# [dialogues + 1], nodes [rounds + 1], accepted nodes [rounds + 1].
_MEMBERS = (
    *("prompt_offsets", "prompts", "round_offsets"),
    *("node_offsets", "tokens", "parents", "scores", "path_offsets", "paths"),
)


def _flatten(dialogues: Sequence[Dialogue]) -> dict[str, NDArray[Any]]:
    rounds = [item for dialogue in dialogues for item in dialogue.rounds]
    return {
        "prompt_offsets": _offsets(dialogue.prompt for dialogue in dialogues),
        "prompts": _join((dialogue.prompt for dialogue in dialogues), np.int64),
        "round_offsets": _offsets(dialogue.rounds for dialogue in dialogues),
        "node_offsets": _offsets(item.tokens for item in rounds),
        "tokens": _join((item.tokens for item in rounds), np.int64),
        "parents": _join((item.parents for item in rounds), np.int64),
        "scores": _join((item.scores for item in rounds), np.float32),
        "path_offsets": _offsets(item.path for item in rounds),
        "paths": _join((item.path for item in rounds), np.int64),
    }


def _split_all(arrays: Mapping[str, NDArray[Any]]) -> tuple[Dialogue, ...]:
    nodes = (_split(arrays[name], arrays["node_offsets"]) for name in ("tokens", "parents", "scores"))
    paths = _split(arrays["paths"], arrays["path_offsets"])
    rounds = [
        Round(tokens, parents, scores, tuple(path.tolist()))
        for tokens, parents, scores, path in zip(*nodes, paths, strict=True)
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


def _versions() -> dict[str, str]:
    import onnxruntime

    return {
        "poss-export": version("poss-export"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
