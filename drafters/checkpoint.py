"""Drafter checkpoints: a folder with config.json and model.safetensors.

Tensors carry the names of the public EAGLE and PosS releases (`[out, in]` matrices), so that other
tools can read what we write; `d2t` maps draft ids to target ids as EAGLE-3 does, by offsets.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poss_export.config import DrafterConfig, TargetConfig
from poss_export.drafters.layout import named_tensors
from poss_export.drafters.model import Drafter
from poss_export.errors import CheckpointError, InputError


@dataclass(frozen=True)
class DrafterCheckpoint:
    """A loaded drafter; `sha256` is that of its weight file.

    `target_sha256` is that of the target it was trained for (None: not recorded).
    """

    name: str
    sha256: str
    drafter: Drafter
    target_sha256: str | None

    @property
    def parameters(self) -> int:
        """Number of weights, without the target's tables."""
        return sum(weight.numel() for weight in self.drafter.parameters())


def shipped_drafters() -> list[str]:
    """Return the names of the drafters that come with the package."""
    demo = resources.files("poss_export") / "demo"
    return sorted(entry.name for entry in demo.iterdir() if entry.is_dir()) if demo.is_dir() else []


def is_drafter(spec: str) -> bool:
    """Whether `spec` is a shipped drafter, or a folder whose config.json is a drafter's."""
    config = Path(spec) / "config.json"
    return spec in shipped_drafters() or (
        config.is_file() and "positions_per_specialist" in config.read_text()
    )


def load_drafter(spec: str) -> DrafterCheckpoint:
    """Load a shipped drafter by name, or a folder; weights become float32.

    Raises InputError where there is nothing by that name, CheckpointError where it cannot be used.
    """
    folder = Path(spec)
    if spec in shipped_drafters():
        folder = Path(str(resources.files("poss_export") / "demo" / spec))
    elif not folder.is_dir():
        raise InputError(
            f"drafter {spec!r} is neither a folder nor a shipped drafter ({', '.join(shipped_drafters())}); "
            "train one with `poss-export train`"
        )
    values = _read_config(folder / "config.json")
    target_sha256 = values.pop("target_sha256", None)
    config = DrafterConfig.from_dict(values)
    drafter = Drafter(config)
    weights = folder / "model.safetensors"
    _fill(drafter, _read_tensors(weights))
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return DrafterCheckpoint(
        folder.resolve().name, sha256, drafter.eval().requires_grad_(False), target_sha256
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


def check_pair(target: TargetConfig, drafter: DrafterConfig) -> None:
    """Raise CheckpointError where a drafter's sizes do not fit the target."""
    for name in ("hidden_size", "vocab_size"):
        mine, other = getattr(drafter, name), getattr(target, name)
        if mine != other:
            raise CheckpointError(
                f"the drafter's {name} is {mine}, the target's is {other}: this drafter belongs to another "
                "target; train one for this target with `poss-export train`"
            )


def _fill(drafter: Drafter, tensors: dict[str, Tensor]) -> None:
    """Copy checkpoint tensors into the drafter; the names must match exactly."""
    slots = dict(named_tensors(drafter))
    missing, unknown = sorted({*slots, "d2t"} - set(tensors)), sorted(set(tensors) - {*slots, "d2t"})
    if missing or unknown:
        raise CheckpointError(
            f"drafter tensors do not match its config.json; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}"
        )
    with torch.no_grad():
        for name, slot in slots.items():
            if tensors[name].shape != slot.shape:
                raise CheckpointError(
                    f"drafter tensor {name} has shape {list(tensors[name].shape)}, its config.json implies "
                    f"{list(slot.shape)}"
                )
            slot.copy_(tensors[name])
    ids = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    size, vocab = drafter.config.draft_vocab_size, drafter.config.vocab_size
    if len(ids) != size or int(ids.min()) < 0 or int(ids.max()) >= vocab or bool((ids.diff() <= 0).any()):
        raise CheckpointError(f"drafter tensor d2t must map {size} draft ids to ascending ids below {vocab}")
    drafter.draft_ids.copy_(ids)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); expected a folder from `poss-export train`"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object; fetch the drafter again")
    return values


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not readable ({error}); it is missing or truncated: fetch it again"
        ) from error
