"""Drafter checkpoints: a folder with config.json and weights, ours or a public release (docs/checkpoints.md).

Tensors carry the names of the public EAGLE and PosS releases (`[out, in]` matrices), so that other
tools can read what we write; `d2t` maps draft ids to target ids as EAGLE-3 does, by offsets.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
from torch import Tensor

from poss_export.config import TargetConfig
from poss_export.draft_vocabulary import DraftVocabulary, describe_vocabulary
from poss_export.drafters.dialects import OURS, Dialect, recognise
from poss_export.drafters.layout import EMBEDDINGS, HEAD, named_tensors
from poss_export.drafters.model import Drafter
from poss_export.drafters.releases import Release, read_release
from poss_export.errors import CheckpointError, InputError, translated
from poss_export.files import parse_json
from poss_export.manifest import MANIFEST
from poss_export.targets.checkpoint import hash_files
from poss_export.targets.decoder import Decoder
from poss_export.targets.hf import DERIVED, open_weights, published_name, weight_files
from poss_export.targets.methods import stated_method

_MADE_HERE = Dialect(OURS, "it was made here")
_BLOCK = 1024  # rows of a table that are compared at once
# Where trainers and exporters put the drafter inside something else; may be nested.
_WRAPPERS = re.compile(r"^((model|module|ea_layer|_orig_mod)\.)+")
_LANGUAGE_MODEL = {"embed_tokens.weight", "layers.0.input_layernorm.weight", "norm.weight"}


@dataclass(frozen=True)
class DrafterCheckpoint:
    """A loaded drafter; `sha256` is that of its weight files.

    `target_sha256` is that of the target it was trained for (None: not recorded). `copies`: tables
    `[vocab, hidden]` that the checkpoint copied from its target, by their names there, mapped from the file
    and not in memory; `check_tables` compares them. `unsettled`: its files do not say whether what it feeds
    back has passed the final norm, which `settle_feedback` tries. `vocabulary`: the part of the target's
    that it was cut to; None: it proposes what its files say.
    """

    name: str
    sha256: str
    drafter: Drafter
    target_sha256: str | None
    dialect: Dialect = _MADE_HERE
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    unsettled: bool = False
    vocabulary: DraftVocabulary | None = None

    def cut(self, vocabulary: DraftVocabulary) -> "DrafterCheckpoint":
        """Return it with a drafter that proposes this part of the target's vocabulary; it is changed."""
        self.drafter.propose_only(torch.from_numpy(vocabulary.to_array()))
        return replace(self, vocabulary=vocabulary)

    @property
    def vocabulary_words(self) -> str:
        """What it can propose, in words."""
        return describe_vocabulary(self.drafter.config, self.vocabulary)

    @property
    def parameters(self) -> int:
        """Number of weights, without the target's tables."""
        return sum(weight.numel() for weight in self.drafter.parameters())


def shipped_drafters() -> list[str]:
    """Return the names of the drafters that come with the package."""
    demo = resources.files("poss_export") / "demo"
    return sorted(entry.name for entry in demo.iterdir() if entry.is_dir()) if demo.is_dir() else []


def is_drafter(spec: str) -> bool:
    """Whether `spec` is a shipped drafter, or a folder that holds a drafter of any known dialect.

    Raises CheckpointError where there is a config.json whose weights cannot be opened.
    """
    if spec in shipped_drafters():
        return True
    with translated(CheckpointError, f"{spec!r} cannot be read; fetch it again"):
        return (Path(spec) / "config.json").is_file() and recognise(*_open(Path(spec))[:2]) is not None


def refuse_drafter(spec: str) -> None:
    """Raise InputError where what is given as a target is a drafter."""
    with suppress(CheckpointError):  # whoever opens the target says what is damaged
        if is_drafter(spec):
            raise InputError(
                f"target {spec!r} is a drafter; give it as the drafter, beside the target it was made for",
                options=("drafter",),
            )


def load_drafter(spec: str, positions_per_specialist: int | None = None) -> DrafterCheckpoint:
    """Load a shipped drafter by name, or a folder of a supported dialect; weights become float32.

    `positions_per_specialist` is for PosS releases, whose files do not state it; a checkpoint that does
    must say the same.

    Raises:
        InputError: there is nothing by that name, or `positions_per_specialist` is needed or wrong.
        CheckpointError: the checkpoint is damaged, or of a dialect that is not supported.
    """
    folder = Path(spec)
    if spec in shipped_drafters():
        folder = Path(str(resources.files("poss_export") / "demo" / spec))
    elif (folder / MANIFEST).is_file():
        raise InputError(
            f"drafter {spec!r} is a bundle, which was built already; give the drafter that it was built from"
        )
    elif not folder.is_dir():
        raise InputError(
            f"drafter {spec!r} is neither a folder nor a shipped drafter ({', '.join(shipped_drafters())}); "
            "train one with `poss-export train`, or give the folder of a public release"
        )
    with translated(CheckpointError, f"drafter {spec!r} cannot be read; fetch it again"):
        values, tensors, files = _open(folder)
        target_sha256 = values.pop("target_sha256", None)
        if recognise(values, tensors) is None and tensors.keys() >= _LANGUAGE_MODEL:
            raise InputError(
                f"drafter {spec!r} is a language model of its own, which can be a target; give the folder of "
                "a drafter that was trained for the target"
            )
        if (method := stated_method(values)) is not None:
            raise CheckpointError(
                f"drafter {spec!r} has quantised weights ({shortened(method)}), which are read of targets "
                "only; use the original checkpoint"
            )
        release = read_release(folder, values, tensors, positions_per_specialist)
        return DrafterCheckpoint(
            published_name(folder),
            hash_files(files),
            _fill(release),
            target_sha256,
            release.dialect,
            _copies(release),
            release.unsettled,
        )


def save_drafter(folder: Path, drafter: Drafter, target_sha256: str | None, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors; matrices in `dtype`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.to(dtype).contiguous() for name, value in named_tensors(drafter)}
    tensors["d2t"] = drafter.draft_ids - torch.arange(len(drafter.draft_ids))
    # config.json comes last: a folder that has it is complete.
    save_file(tensors, folder / "model.safetensors")
    values = {**drafter.config.to_dict(), "target_sha256": target_sha256}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def pair(target: TargetConfig, drafter: Drafter) -> None:
    """Settle what a drafter leaves open by its target; raise CheckpointError where their sizes do not fit."""
    drafter.settle(config := drafter.config.beside(target))
    facts = {
        "hidden_size": (config.read_size, target.hidden_size),
        "vocab_size": (config.vocab_size, target.vocab_size),
    }
    for name, (mine, other) in facts.items():
        if mine != other:
            raise CheckpointError(
                f"the drafter's {name} is {mine}, the target's is {other}: this drafter belongs to another "
                "target; train one for this target with `poss-export train`"
            )


def check_tables(decoder: Decoder, drafter: DrafterCheckpoint) -> None:
    """Raise CheckpointError where a table that a drafter copied from its target is not the decoder's.

    They are compared in the copy's type: releases round the target's tables to their own.
    """
    tables = {EMBEDDINGS: decoder.embed, HEAD: decoder.head_rows}
    for name, copy in drafter.copies.items():
        differ = [
            start + row
            for start in range(0, len(copy), _BLOCK)
            for row in _unequal(copy[start : start + _BLOCK], tables[name], start)
        ]
        if differ:
            raise CheckpointError(
                f"{name} of drafter {drafter.name!r} differs from the target's in {len(differ)} of "
                f"{len(copy)} rows (the first: {differ[0]}): it was trained for another target, or for this "
                "one before it was tuned or quantised; use the target it was trained for, unquantised"
            )


def _unequal(copy: Tensor, table: Callable[[Tensor], Tensor], start: int) -> list[int]:
    """Return the rows in which a copy differs from rows of `table` from `start` on, rounded to its type."""
    theirs = table(torch.arange(start, start + len(copy))).to(copy.dtype)
    rows: list[int] = (copy != theirs).any(dim=1).nonzero()[:, 0].tolist()
    return rows


def _copies(release: Release) -> dict[str, Tensor]:
    """Return the tables of the target that a release has, and that are not the drafter's own."""
    owned = {EMBEDDINGS: release.config.own_embeddings, HEAD: release.config.own_head}
    return {name: release.tensors[name] for name, own in owned.items() if name in release.tensors and not own}


@torch.no_grad()
def _fill(release: Release) -> Drafter:
    """Return the drafter with float32 weights; the tensors are read here, one at a time."""
    drafter = Drafter(release.config)
    for name, slot in named_tensors(drafter):
        slot.copy_(release.tensors[name])
    ids, order = _draft_ids(release)
    drafter.draft_ids.copy_(ids)
    if drafter.head is not None:
        drafter.head.copy_(drafter.head[order])
    return drafter.eval().requires_grad_(False)


def _draft_ids(release: Release) -> tuple[Tensor, Tensor]:
    """Return the ascending target ids that can be proposed, and the draft id of each in the file.

    `d2t` holds the distances of target ids from the draft ids.
    """
    vocab, size = release.config.vocab_size, release.config.draft_vocab_size
    ids, order = (release.tensors.get("d2t", torch.tensor(0)) + torch.arange(size)).sort()
    if int(ids[0]) < 0 or int(ids[-1]) >= vocab or bool((ids.diff() == 0).any()):
        raise CheckpointError(
            f"drafter tensor d2t maps {len(ids)} draft ids to {len(ids.unique())} target ids from "
            f"{int(ids[0])} to {int(ids[-1])}; expected each once, from 0 to {vocab - 1}: it must hold "
            "target id minus draft id; fetch the checkpoint again"
        )
    t2d = release.tensors.get("t2d")
    if t2d is not None and not torch.equal(t2d.nonzero()[:, 0], ids):
        raise CheckpointError("drafter tensors d2t and t2d name other target ids; fetch the checkpoint again")
    return ids, order


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], tuple[Path, ...]]:
    """Return config.json, the tensors, mapped but not read, and the files that hold them."""
    path = folder / "config.json"
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); expected a drafter's folder: check the path"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object; fetch the drafter again")
    files = weight_files(folder)
    opened = open_weights(files)
    tensors = dict[str, Tensor]()
    for wrapped, stored in opened.items():
        if (name := _WRAPPERS.sub("", wrapped)) in tensors:
            raise CheckpointError(f"{folder}: tensor {name!r} is there twice, also as {wrapped!r}")
        if not name.endswith(DERIVED):
            tensors[name] = stored.whole()
    return values, tensors, files
