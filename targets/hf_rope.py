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
    rope = _read_phi3(values) if values["model_type"] == "phi3" else read_rope(values)
    return rope, rope


def longest(values: Mapping[str, Any]) -> int | float:
    """Return up to how many positions a rotary embedding is the same whatever the length of the text."""
    facts = values.get("rope_parameters") or {}
    long = facts.get("rope_type") == "longrope"
    return facts["original_max_position_embeddings"] if long else math.inf


def _read_phi3(values: Mapping[str, Any]) -> RopeConfig:
    """Return a rotary embedding that may rotate a part of each head, and scale frequencies one by one."""
    facts: Mapping[str, Any] = values["rope_parameters"]
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    part = facts.get("partial_rotary_factor", 1)
    rotated = None if part == 1 else int(head_dim * part)
    if rotated is not None and (rotated % 2 or not 0 < rotated < head_dim):
        raise CheckpointError(
            f"partial_rotary_factor {part!r} rotates {rotated} of the {head_dim} values of a head; expected "
            "an even number of them: fetch config.json again"
        )
    if facts.get("rope_type") != "longrope":
        return replace(read_rope({"rope_parameters": {**facts, "partial_rotary_factor": 1}}), rotated=rotated)
    original = facts["original_max_position_embeddings"]
    factor, attention = facts.get("factor"), facts.get("attention_factor")
    if factor is None:
        factor = values["max_position_embeddings"] / original
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    divisors = tuple(facts["short_factor"])
    return RopeConfig(
        facts["rope_theta"], "longrope", attention_factor=attention, divisors=divisors, rotated=rotated
    )


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
