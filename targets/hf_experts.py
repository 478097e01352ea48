"""The experts of a config.json: which of them our decoder computes."""

from collections.abc import Mapping
from reprlib import repr as shortened
from typing import Any

from poss_export.errors import CheckpointError

MOST_EXPERTS = 16
_COUNT = ("num_local_experts", "num_experts")  # transformers writes the first for every type
_SIZES: dict[str, tuple[tuple[str, ...], ...]] = {
    "mixtral": (_COUNT, ("num_experts_per_tok",)),
    "qwen3_moe": (_COUNT[::-1], ("num_experts_per_tok",), ("moe_intermediate_size",)),
}


def expert_sizes(model_type: str) -> tuple[tuple[str, ...], ...]:
    """Return what a config.json of a type must state of its experts, each by its names.

    Without them transformers takes the sizes of somebody else's model.
    """
    return _SIZES.get(model_type, ())


def read_experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `TargetConfig` that say which experts there are; none for types without any.

    Raises:
        CheckpointError: they are too many to compute them all, or some layers have none.
    """
    if values["model_type"] not in _SIZES:
        return {}
    count = values["num_local_experts"]
    if type(count) is not int or not 1 <= count <= MOST_EXPERTS:
        raise CheckpointError(
            f"{shortened(count)} experts are not supported; every expert is computed for every token, so "
            f"this version takes 1 to {MOST_EXPERTS}"
        )
    sizes = {"num_experts": count, "experts_per_token": values["num_experts_per_tok"]}
    if values["model_type"] == "mixtral":
        return sizes
    for name, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if (value := values[name]) != plain:
            raise CheckpointError(
                f"{name} {shortened(value)} is not supported; this version knows {plain!r} only, where every "
                "layer has experts"
            )
    inner, normed = values["moe_intermediate_size"], values["norm_topk_prob"]
    return {**sizes, "intermediate_size": inner, "normed_experts": normed}
