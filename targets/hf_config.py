"""Facts of Hugging Face folders: what transformers makes of config.json, as far as our decoder computes it.

What a field means where it is left out, and which of two that disagree holds, differs from architecture to
architecture. So transformers reads the file, and whatever our decoder does not compute is refused.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from poss_export.config import RopeConfig, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.architectures import check_architecture
from poss_export.targets.json_file import read_json
from poss_export.targets.methods import read_quantisation

_ARCHITECTURES = ("llama", "mistral", "phi3", "qwen2", "qwen3")
# What a file must state: the defaults are the sizes of somebody else's model.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The values at which there is nothing that our decoder would have to compute.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True,),
    "per_layer_config": (None,),
}
# Fields of other architectures that change what is computed, with the values at which they do not.
_FOREIGN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention_multiplier", "residual_multiplier", "embedding_multiplier"), (1,)),
    **dict.fromkeys(("logits_scaling", "logit_scale", "scale_emb", "scale_depth"), (1,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"), ()),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), (0, 1)),
    **dict.fromkeys(("attention_chunk_size", "no_rope_layers", "clip_qkv"), ()),
    "text_config": (),
    **dict.fromkeys(("attention_bias", "mlp_bias"), (False,)),  # of some of ours
    **dict.fromkeys(("use_qk_norm", "attn_temperature_tuning"), (False, 0)),
}
# Fields that transformers declares for these architectures, and that are read or change no logits.
_KNOWN = {
    *_SIZES,
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp"),
    "original_max_position_embeddings",  # Phi-3's, whose longrope is refused
}
_LONGEST = 300  # letters of somebody else's message


def read_config(folder: Path) -> TargetConfig:
    """Return the target's facts from config.json.

    A sliding window caps `max_positions`: up to its width it is plain attention, and no further is supported.

    Raises:
        CheckpointError: transformers cannot read it, or our decoder would compute something else.
    """
    path = folder / "config.json"
    stated = read_json(path)
    architecture = _need(path, stated, "model_type")
    check_architecture(architecture, _ARCHITECTURES)
    for name in _SIZES:
        _need(path, stated, name)
    read_quantisation(stated)  # which refuses what is not read
    values = _as_transformers_reads(path, stated)
    _refuse_variants(values)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim")
    biased = values.get("attention_bias", False)
    return TargetConfig(
        architecture=architecture,
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_dim=hidden // heads if head_dim is None else head_dim,
        rms_norm_eps=values["rms_norm_eps"],
        max_positions=min(values["max_position_embeddings"], _sliding_window(values)),
        rope=read_rope(values),
        tied_embeddings=values["tie_word_embeddings"],
        qkv_bias=biased or architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        output_bias=biased,
        mlp_bias=values.get("mlp_bias", False),
    )


def _need(path: Path, values: Mapping[str, Any], name: str) -> Any:
    if (value := values.get(name)) is None:
        raise CheckpointError(f"{path}: {name!r} is missing; fetch the checkpoint again")
    return value


def doubts(folder: Path) -> tuple[str, ...]:
    """Return what config.json leaves open."""
    stated = read_json(folder / "config.json")
    own, quantisation = stated.get("auto_map"), read_quantisation(stated)
    told = () if quantisation is None else quantisation.doubts
    if not isinstance(own, Mapping) or not any(name.startswith("AutoModel") for name in own):
        return told
    return (
        *told,
        "its config.json names code of its own for the model (auto_map), which is not run: it is computed "
        "as transformers computes its model_type",
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep what transformers warns of within to itself."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(verbosity)


def _as_transformers_reads(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the defaults of their architecture, and the rotary embedding in one place."""
    from transformers import AutoConfig

    values: dict[str, Any] = deepcopy({**stated})  # transformers writes into them
    try:
        with quiet_transformers():
            config: Any = AutoConfig.for_model(values.pop("model_type"), **values)
            read: dict[str, Any] = config.to_dict()
    except Exception as error:  # the library raises nothing narrower
        told = " ".join(str(error).split()).split(" Errors: ")[0]  # which says the same again, type by type
        raise CheckpointError(
            f"{path}: transformers cannot read it ({told[:_LONGEST]}); mend it, or fetch it again"
        ) from error
    _refuse_unread(path, config, read)
    return read


def _refuse_unread(path: Path, config: Any, read: Mapping[str, Any]) -> None:
    """Refuse fields that transformers passes over, and those that this version does not know."""
    kind = type(config)
    defaults = kind()  # has what the architecture declares
    for name, plain in _FOREIGN.items():
        if (value := read.get(name)) is not None and value not in plain and not hasattr(defaults, name):
            raise CheckpointError(
                f"config.json has {name} {shortened(value)}, which transformers ignores in models of type "
                f"{kind.model_type!r}: is that its type? If it is, take the field out"
            )
    for name in sorted(kind.__annotations__.keys() - _KNOWN):
        if (value := getattr(config, name)) != getattr(kind, name, None):
            raise CheckpointError(
                f"{path}: {name} {shortened(value)} is not known to this version, which might compute "
                "something else; use a newer version of poss-export"
            )


def _refuse_variants(values: Mapping[str, Any]) -> None:
    """Refuse what the decoder would compute wrongly or not at all."""
    for name, plain in _PLAIN.items():
        if (value := values.get(name, plain[0])) not in plain:
            raise CheckpointError(
                f"{name} {shortened(value)} is not supported; this version knows {plain[0]!r} only"
            )


def _sliding_window(values: Mapping[str, Any]) -> int | float:
    """Return how far attention reaches in the layers where it is limited; infinity without such layers."""
    kinds = set(values.get("layer_types") or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"layer_types {', '.join(sorted(unknown))} are not supported; this version knows full_attention, "
            "sliding_attention"
        )
    window: int | None = values.get("sliding_window")
    if window is not None and type(window) is not int:
        raise CheckpointError(f"sliding_window is {shortened(window)}; expected a number of tokens, or null")
    if kinds == {"full_attention"} and values["model_type"] != "mistral":  # which has a window in every layer
        return float("inf")
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError(
            "layer_types has sliding_attention, but there is no sliding_window: fetch config.json again"
        )
    return float("inf") if window is None else window


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
