"""Facts of a release: of its config.json, of its tensors, and of its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poss_export.drafters.dialects import Tensors, Values
from poss_export.errors import CheckpointError, InputError
from poss_export.targets.hf import published_name

# By the name of a public PosS release: positions of each specialist, which its files do not state, and
# how many specialists it has. From the authors' evaluation scripts.
POSS_RELEASES = {
    "PosS1-Llama3-8B-Instruct": (1, 7),
    "PosS2-Llama3-8B-Instruct": (2, 4),
    "PosS3-Llama3-8B-Instruct": (3, 4),
    "PosS1-Llama2-13B-Chat": (1, 6),
    "PosS2-Llama2-13B-Chat": (2, 3),
    "PosS3-Llama2-13B-Chat": (3, 2),
    "PosS3-E3-Llama3.1-8B-Instruct": (3, 3),
}


@dataclass(frozen=True)
class Facts:
    """Llama's fields of a config.json; what is null is missing."""

    path: Path
    values: Values

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; raises CheckpointError where it is missing and there is no default."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {name!r} is missing; fetch the checkpoint again")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0, in the words of `get`."""
        value = self.get(name, default)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.path}: {name!r} is {value!r}; expected a whole number above 0")
        return value


def sizes(facts: Facts, tensors: Tensors, fc: str) -> dict[str, Any]:
    """Return what the configuration says of sizes, or for widths how many rows a matrix has."""

    def rows(name: str, fact: str) -> int:
        return tensors[name].shape[0] if name in tensors and tensors[name].dim() else facts.size(fact)

    hidden, heads = rows(fc, "hidden_size"), facts.size("num_attention_heads")
    return {
        "hidden_size": hidden,
        "intermediate_size": rows("layers.0.mlp.gate_proj.weight", "intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": facts.size("num_key_value_heads", heads),
        "head_dim": facts.size("head_dim", hidden // heads),
    }


def released_positions(folder: Path, specialists: int) -> int:
    """Return the positions of each specialist of a public PosS release, by the name it was published as."""
    name = published_name(folder)
    positions, expected = POSS_RELEASES.get(name, (None, None))
    if positions is None or specialists != expected:
        known = "no public release" if positions is None else f"a release of {expected} specialists"
        raise InputError(
            f"drafter {name!r} is PosS with {specialists} specialists, its files do not say how many draft "
            f"positions each one serves, and that is the name of {known}: state it, "
            "as 3 for PosS-3",
            options=("positions_per_specialist",),
        )
    return positions
