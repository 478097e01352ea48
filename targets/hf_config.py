"""Facts of Hugging Face folders: what transformers makes of config.json, as far as our decoder computes it.

What a field means where it is left out, and which of two that disagree holds, differs from architecture to
architecture. So transformers reads the file, and whatever our decoder does not compute is refused.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, get_args

from poss_export.config import Architecture, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.architectures import check_architecture
from poss_export.targets.hf_experts import expert_sizes, read_experts
from poss_export.targets.hf_rope import longest, read_ropes
from poss_export.targets.json_file import read_json
from poss_export.targets.methods import read_quantisation
from poss_export.targets.packing import GEMMA

_ARCHITECTURES = get_args(Architecture)
# What a file must state: the defaults are the sizes of somebody else's model.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# The values at which there is nothing that our decoder would have to compute.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (None, False),
    "per_layer_config": (None,),
}
# Activations by the names of transformers.
_ACTIVATIONS: dict[Any, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
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
    *("tie_word_embeddings", "hidden_act", "hidden_activation", "attention_bias", "mlp_bias"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    "use_bidirectional_attention",
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp"),
    *("original_max_position_embeddings", "num_local_experts", "num_experts", "num_experts_per_tok"),
    *("moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
}
_QK_NORMS = ("qwen3", "qwen3_moe", "gemma3_text")
_OUTER_NORMS = ("gemma2", "gemma3_text")
_WINDOWS_BY_LAYER = ("qwen2", "qwen3", "gemma2", "gemma3_text")  # as layer_types says
_WINDOWS_EVERYWHERE = ("mistral", "mixtral", "phi3", "qwen3_moe")  # in all layers, where there is one
_LONGEST = 300  # letters of somebody else's message


def read_config(folder: Path) -> TargetConfig:
    """Return the target's facts from config.json.

    Raises:
        CheckpointError: transformers cannot read it, or our decoder would compute something else.
    """
    path = folder / "config.json"
    stated = read_json(path)
    architecture = _need(path, stated, "model_type")
    check_architecture(architecture, _ARCHITECTURES)
    for name in _SIZES:
        _need(path, stated, name)
    for names in expert_sizes(architecture):
        _need(path, stated, *names)
    read_quantisation(stated)  # which refuses what is not read
    values = _as_transformers_reads(path, stated)
    _refuse_variants(values)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim")
    biased = values.get("attention_bias", False)
    sizes = {"intermediate_size": values["intermediate_size"], **read_experts(values)}
    return TargetConfig(
        architecture=architecture,
        vocab_size=values["vocab_size"],
        hidden_size=hidden,
        num_layers=values["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_dim=hidden // heads if head_dim is None else head_dim,
        rms_norm_eps=values["rms_norm_eps"],
        tied_embeddings=values["tie_word_embeddings"],
        qkv_bias=biased or architecture == "qwen2",
        qk_norm=architecture in _QK_NORMS,
        output_bias=biased,
        mlp_bias=values.get("mlp_bias", False),
        activation=_activation(values),
        outer_norms=architecture in _OUTER_NORMS,
        attention_cap=values.get("attn_logit_softcapping"),
        logit_cap=values.get("final_logit_softcapping"),
        **sizes,
        **_scales(values),
        **_reach(values),
    )


def _scales(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the factors that an architecture multiplies by."""
    if values["model_type"] == "granite":
        return {
            "embedding_scale": values["embedding_multiplier"],
            "attention_scale": values["attention_multiplier"],
            "residual_scale": values["residual_multiplier"],
            "logit_divisor": values["logits_scaling"],
        }
    if values["model_type"] in GEMMA:
        scalar = values.get("query_pre_attn_scalar")
        return {
            "embedding_scale": values["hidden_size"] ** 0.5,
            "attention_scale": None if scalar is None else scalar**-0.5,
        }
    return {}


def _reach(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far tokens see, and how their places are told: windows, rotary embeddings, the context."""
    windowed, window = _windows(values)
    rope, window_rope = read_ropes(values)
    if len(windowed) == values["num_hidden_layers"]:
        rope = window_rope
    most = min(values["max_position_embeddings"], longest(values))
    if not windowed and window is not None:  # transformers passes it over; up to there nobody can err
        most, window = min(most, window), None
    return {
        "max_positions": most,
        "rope": rope,
        "windowed_layers": windowed,
        "window": window,
        "window_rope": window_rope if windowed and window_rope != rope else None,
    }


def _need(path: Path, values: Mapping[str, Any], *names: str) -> Any:
    """Return a field that a file must state, by one of its names."""
    found = [values[name] for name in names if values.get(name) is not None]
    if not found:
        raise CheckpointError(f"{path}: {names[0]!r} is missing; fetch the checkpoint again")
    return found[0]


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
    uncapped = {"attn_logit_softcapping": (None,)} if values["model_type"] == "gemma3_text" else {}
    for name, plain in {**_PLAIN, **uncapped}.items():
        if (value := values.get(name, plain[0])) not in plain:
            raise CheckpointError(
                f"{name} {shortened(value)} is not supported; this version knows {plain[0]!r} only"
            )


def _activation(values: Mapping[str, Any]) -> Literal["silu", "gelu_tanh"]:
    name = "hidden_activation" if values["model_type"] in _OUTER_NORMS else "hidden_act"
    if (value := values[name]) not in _ACTIVATIONS:
        raise CheckpointError(
            f"{name} {shortened(value)} is not supported; this version knows {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[value]


def _windows(values: Mapping[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """Return which layers attend in a window, and how many tokens it has.

    One that no layer has is None, one that transformers does not read has no layers.
    """
    kinds, layers = values.get("layer_types") or (), values["num_hidden_layers"]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"layer_types {', '.join(sorted(unknown))} are not supported; this version knows full_attention, "
            "sliding_attention"
        )
    window: int | None = values.get("sliding_window")
    if window is not None and type(window) is not int:
        raise CheckpointError(f"sliding_window is {shortened(window)}; expected a number of tokens, or null")
    if values["model_type"] in _WINDOWS_EVERYWHERE:
        return (tuple(range(layers)) if window is not None else ()), window
    windowed = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if window is None and windowed:
        raise CheckpointError(
            "layer_types has sliding_attention, but there is no sliding_window: fetch config.json again"
        )
    if values["model_type"] in _WINDOWS_BY_LAYER:
        return windowed, window if windowed else None
    return (), window
