"""Releases: what the files of a recognised dialect say, as our configuration and under our tensor names.

Where config.json and tensors disagree on a bias, a width or the number of layers, the tensors are right.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poss_export.drafter_config import DrafterConfig, Fusion
from poss_export.drafters import dialects
from poss_export.drafters.dialects import Dialect, Tensors, Values, count_layers, recognise
from poss_export.drafters.facts import Facts, released_positions, sizes
from poss_export.drafters.layout import EMBEDDINGS, HEAD, named_tensors
from poss_export.drafters.model import Drafter
from poss_export.drafters.taps_releases import is_unsettled, read_taps_release
from poss_export.errors import CheckpointError, InputError
from poss_export.targets.hf_rope import read_rope
from poss_export.targets.weights import FLOATS

_SETTINGS = {
    dialects.SPECULATORS: "transformer_layer_config",
    dialects.VLLM: "model",
}  # where they are nested
_RENAMED = {"fusion_fc.": "fc.", "transformer.": "layers.0."}  # of speculators EAGLE
_FUSIONS: dict[str, Fusion] = {dialects.FSPAD: "gated", dialects.GRIFFIN: "guided"}


@dataclass(frozen=True)
class Release:
    """A checkpoint of a supported dialect, its names and shapes checked.

    `tensors` holds all of `named_tensors`, and perhaps `d2t`, `t2d` and copies of the target's tables.
    `unsettled` as `DrafterCheckpoint` says it.
    """

    dialect: Dialect
    config: DrafterConfig
    tensors: Tensors
    unsettled: bool = False


def read_release(
    folder: Path, values: Values, tensors: Tensors, positions_per_specialist: int | None = None
) -> Release:
    """Read a checkpoint's facts and check its names and shapes; reads no tensor's data.

    Args:
        folder: where the checkpoint is from; its name may be that of a public release.
        values: of its config.json.
        tensors: by their names in the files, without a leading "model."; may be on the meta device.
        positions_per_specialist: as the user states it; None: the checkpoint does.

    Raises:
        CheckpointError: the dialect is unknown or not supported, or the files are not what it says.
        InputError: `positions_per_specialist` is needed, or contradicts the checkpoint.
    """
    dialect = recognise(values, tensors)
    if dialect is None:
        raise CheckpointError(
            f"{folder}: not a drafter of a known dialect; its config.json has {_listed(values)}; its tensors "
            f"are {_listed(tensors)}; docs/checkpoints.md lists what is known"
        )
    if dialect.refusal is not None:
        raise CheckpointError(
            f"{folder}: this drafter is {dialect.name} ({dialect.reason}), which is not supported: "
            f"{dialect.refusal}; docs/checkpoints.md lists what is"
        )
    if dialect.name == dialects.SPECULATORS:
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    if dialect.name == dialects.OURS:
        config = DrafterConfig.from_dict(dict(values))
    elif dialect.name in dialects.READ_TAPS:
        config, tensors = read_taps_release(folder, dialect, values, tensors, positions_per_specialist)
    else:
        config = _read_config(folder, dialect, values, tensors, positions_per_specialist)
    _check_positions(config.positions_per_specialist, positions_per_specialist, folder, dialect)
    _check_tensors(f"{folder} ({dialect.name})", config, tensors)
    unsettled = dialect.name in dialects.READ_TAPS and is_unsettled(dialect, config)
    return Release(dialect, config, tensors, unsettled)


def _read_config(
    folder: Path, dialect: Dialect, values: Values, tensors: Tensors, positions: int | None
) -> DrafterConfig:
    """Return the facts of a public release."""
    nested = _SETTINGS.get(dialect.name)
    facts = Facts(folder / "config.json", values if nested is None else values.get(nested, {}))
    if (activation := facts.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"{facts.path}: hidden_act is {activation!r}; this version knows 'silu' only")
    fusion = _FUSIONS.get(dialect.name, "linear")
    vocab = facts.size("vocab_size")
    return DrafterConfig(
        **sizes(facts, tensors, "fc.weight" if fusion == "linear" else "fc.fc.weight"),
        rms_norm_eps=facts.get("rms_norm_eps", 1e-6),  # what Llama's configuration means by leaving it out
        vocab_size=vocab,
        draft_vocab_size=tensors["d2t"].numel() if "d2t" in tensors else vocab,
        rope=read_rope(facts.values),
        fusion=fusion,
        fusion_bias=fusion != "linear" or "fc.bias" in tensors,
        qkv_bias=any(re.search(r"\.[qkv]_proj\.bias$", name) for name in tensors),
        alignment="joint" if fusion == "linear" else "split",
        **_parts(folder, dialect, facts, count_layers(tensors), positions),
    )


def _parts(
    folder: Path, dialect: Dialect, facts: Facts, layers: int, positions: int | None
) -> dict[str, Any]:
    """Return what layers are in this dialect: specialists, or all for one row, or one alone."""
    if dialect.name == dialects.POSS:
        positions = positions or released_positions(folder, layers)
        return {"num_specialists": layers, "positions_per_specialist": positions}
    if dialect.name == dialects.PARALLEL:
        choices = {name: facts.get(name) for name in ("shared_mask", "mask_feature")}
        return {"drafting": "parallel", "num_layers": layers, "num_masks": facts.size("num_masks"), **choices}
    return {}


def _check_positions(stated: int | None, given: int | None, folder: Path, dialect: Dialect) -> None:
    if given not in (None, stated):
        serves = (
            "one specialist for all positions" if stated is None else f"specialists of {stated} positions"
        )
        raise InputError(
            f"positions per specialist is {given}, but drafter {folder.name!r} ({dialect.name}) "
            f"has {serves}: leave the option out"
        )


def _check_tensors(source: str, config: DrafterConfig, tensors: Tensors) -> None:
    """Raise CheckpointError that names every tensor that is missing, unknown, or of another shape or type."""
    with torch.device("meta"):
        slots = {name: slot.shape for name, slot in named_tensors(Drafter(config))}
    table = torch.Size((config.vocab_size, config.hidden_size))
    may = {EMBEDDINGS: table, HEAD: table, "t2d": table[:1], "d2t": torch.Size((config.draft_vocab_size,))}
    must = slots.keys() | ({"d2t"} if config.draft_vocab_size < config.vocab_size else set())
    shapes = may | slots
    misshapen = [
        f"{name} {list(tensor.shape)}, expected {list(shapes[name])}"
        for name, tensor in sorted(tensors.items())
        if name in shapes and tensor.shape != shapes[name]
    ]
    mistyped = [
        f"{name} {tensor.dtype}"
        for name, tensor in sorted(tensors.items())
        if name in shapes and (tensor.dtype in FLOATS) != (name not in ("d2t", "t2d"))
    ]
    problems = {
        "missing": sorted(must - tensors.keys()),
        "unknown": sorted(tensors.keys() - shapes.keys()),
        "of another shape": misshapen,
        "of another type": mistyped,
    }
    found = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{source}: its tensors are not those of its dialect and configuration; {'; '.join(found)}; "
            "fetch the checkpoint again, as it was released"
        )


def _renamed(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _listed(names: Iterable[str]) -> str:
    """Return the names, those that differ in numbers only once."""
    return ", ".join(sorted({re.sub(r"\d+", "*", name) for name in names})) or "nothing"
