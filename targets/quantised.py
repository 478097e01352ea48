"""Checkpoints of quantised weights: each becomes a float tensor that is dequantised when it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from poss_export.targets.grids import Parts
from poss_export.targets.weights import FLOATS, Stored

_FLOATING = "here they stay in floating point, and answers may differ"
ROUNDED = f"runtimes of its quantised weights round activations, too; {_FLOATING}"
CACHED = f"runtimes of its quantised weights round cached keys and values, too; {_FLOATING}"
CACHE = frozenset({"k_scale", "v_scale", "kv_scale", "output_scale"})  # what that takes, as files call it


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint's weights are quantised, and how they are read.

    marks: a module that has one of these tensors is quantised; spent: what its weight is made of, by the last
    part of the names. unread: what only runtimes need that round activations.
    read: returns a module's weight in the checkpoint's type of floats, None where that is not stated.
    """

    kind: str
    marks: frozenset[str]
    spent: frozenset[str]
    read: Callable[[Parts, torch.dtype | None], Stored]
    unread: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()

    def dequantise(self, tensors: Mapping[str, Stored], dtype: torch.dtype | None) -> dict[str, Stored]:
        """Return the tensors with a weight in floats for each that is quantised; none is read.

        Raises:
            CheckpointError: one is not as the checkpoint's configuration says.
        """
        modules = dict[str, dict[str, Stored]]()
        for name, tensor in tensors.items():
            module, _, last = name.rpartition(".")
            if last not in self.unread:
                modules.setdefault(module, {})[last] = tensor
        found = dict[str, Stored]()
        for module, parts in modules.items():
            if self.marks & parts.keys():
                opened = Parts(module, parts)
                parts = {last: part for last, part in parts.items() if last not in self.spent}
                if "weight" in parts:
                    raise opened.refused("weight", "is there, and its codes too")
                parts["weight"] = self.read(opened, dtype)
            found |= {f"{module}.{last}" if module else last: part for last, part in parts.items()}
        return found


def float_type(stated: torch.dtype | None, scale: Stored) -> torch.dtype:
    """Return the type of a weight's floats: that of the checkpoint, or else that of its scales."""
    if stated is not None:
        return stated
    return scale.dtype if scale.dtype in FLOATS else torch.float32
