"""The rotary embeddings of a config.json, as transformers computes them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as shortened
from typing import Any

from poss_export.config import RopeConfig
from poss_export.errors import CheckpointError


def read_ropes(values: Mapping[str, Any]) -> tuple[RopeConfig, RopeConfig]:
    """Return the rotary embeddings of layers without and with a window; raises as `read_rope`."""
    facts = values.get("rope_parameters")
    if values["model_type"] == "gemma3_text" and isinstance(facts, Mapping):
        kinds = ("full_attention", "sliding_attention")
        far, near = (read_rope({"rope_parameters": facts[kind]}) for kind in kinds)
        return far, near
    rope = read_rope(values)
    return rope, rope


def read_rope(values: Mapping[str, Any]) -> RopeConfig:
    """Return the rotary embedding of a config.json; raises CheckpointError where it is an unknown one."""
    # transformers 5 writes rope_parameters; older releases wrote rope_theta and rope_scaling, which go first.
    facts = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(facts, Mapping) or any(isinstance(value, Mapping) for value in facts.values()):
        raise CheckpointError(
            f"rope parameters {shortened(facts)} are not supported; expected one set, the same in every layer"
        )
    if (part := facts.get("partial_rotary_factor", values.get("partial_rotary_factor", 1))) != 1:
        raise CheckpointError(
            f"partial_rotary_factor {part!r} is not supported; only heads that are rotated as a whole are"
        )
    theta = facts.get("rope_theta") or values.get("rope_theta") or RopeConfig.theta
    kind = facts.get("rope_type", facts.get("type", "default"))
    if kind in ("default", "dynamic"):  # dynamic changes nothing up to max_position_embeddings
        return RopeConfig(theta)
    try:
        if kind == "linear":
            return RopeConfig(theta, "linear", facts["factor"])
        if kind == "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return RopeConfig(theta, "llama3", *(facts[name] for name in names))
        if kind == "yarn":
            return _read_yarn(theta, facts)
    except KeyError as error:
        raise CheckpointError(f"rope scaling {kind!r} lacks {error}; fetch config.json again") from None
    raise CheckpointError(
        f"rope scaling {kind!r} is not supported; this version knows default, dynamic, linear, llama3, yarn"
    )


def _read_yarn(theta: float, facts: Mapping[str, Any]) -> RopeConfig:
    """Return YaRN with what it leaves out as transformers fills it in; raises KeyError for what it needs."""
    factor, attention = facts["factor"], facts.get("attention_factor")
    rope = RopeConfig(
        theta,
        "yarn",
        factor,
        original_max_positions=facts["original_max_position_embeddings"],
        beta_fast=facts.get("beta_fast") or RopeConfig.beta_fast,
        beta_slow=facts.get("beta_slow") or RopeConfig.beta_slow,
        truncate=facts.get("truncate", True),
        attention_factor=1.0 if attention is None else attention,
    )
    if attention is not None:
        return rope
    mscale, mscale_all = facts.get("mscale"), facts.get("mscale_all_dim")
    if not (mscale and mscale_all):
        mscale, mscale_all = 1, 0
    sharper = 0.1 * math.log(max(factor, 1))
    return replace(rope, attention_factor=(mscale * sharper + 1) / (mscale_all * sharper + 1))
