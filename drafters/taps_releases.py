"""Releases of drafters that read taps: EAGLE-3 of several projects, P-EAGLE, PosS-E3.

They share most names. What the flags mean depends on who wrote the file (docs/checkpoints.md); where the
tensors show a fact, they are right.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poss_export.drafter_config import DrafterConfig, TapNorm
from poss_export.drafters import dialects
from poss_export.drafters.dialects import Dialect, Tensors, Values, count_layers
from poss_export.drafters.facts import Facts, released_positions, sizes
from poss_export.drafters.layout import EMBEDDINGS, HEAD
from poss_export.errors import CheckpointError
from poss_export.targets.hf_rope import read_rope

_OF_SPECULATORS = (dialects.SPECULATORS_EAGLE3, dialects.SPECULATORS_P_EAGLE)
_PARALLEL = (dialects.P_EAGLE, dialects.SPECULATORS_P_EAGLE)
_TRAINED_DEPTHS = 8  # of P-EAGLE as it was published; its files do not say it


def read_taps_release(
    folder: Path, dialect: Dialect, values: Values, tensors: Tensors, positions: int | None
) -> tuple[DrafterConfig, Tensors]:
    """Return the facts of a release, and its tensors under our names; reads no tensor's data.

    Args:
        folder: where it is from.
        dialect: one of `dialects.READ_TAPS`.
        values: of its config.json.
        tensors: by their names in the files, without a leading "model.".
        positions: of each specialist, as the user states them (PosS-E3).

    Raises:
        CheckpointError: a fact is missing, or says what no drafter here does.
        InputError: `positions` is needed.
    """
    values = values["model"] if dialect.name == dialects.VLLM_EAGLE3 else values
    inner = values.get("transformer_layer_config") if dialect.name in _OF_SPECULATORS else None
    own, llama = Facts(folder / "config.json", values), Facts(folder / "config.json", inner or values)
    tensors = {re.sub(r"^midlayers?\.(\d+\.)?", _our_layer, name): tensor for name, tensor in tensors.items()}
    _refuse_others(llama, own, dialect)
    vocab, config_sizes = llama.size("vocab_size"), sizes(llama, tensors, "fc.weight")
    table = "d2t" if "d2t" in tensors else HEAD
    shape: dict[str, Any] = {}
    if dialect.name in _PARALLEL:
        shape, tensors = _masks(own, tensors)
    elif dialect.name == dialects.POSS_E3:
        specialists = count_layers(tensors)
        positions = positions or released_positions(folder, specialists)
        shape = {"num_specialists": specialists, "positions_per_specialist": positions}
    if dialect.name != dialects.POSS_E3:
        shape["num_layers"] = max(count_layers(tensors), 1)
    read = own.size("target_hidden_size", config_sizes["hidden_size"])
    config = DrafterConfig(
        **config_sizes,
        rms_norm_eps=llama.get("rms_norm_eps", 1e-6),  # what Llama's configuration means by leaving it out
        vocab_size=vocab,
        draft_vocab_size=tensors[table].shape[0] if table in tensors else vocab,
        rope=read_rope(llama.values),
        qkv_bias=any(re.search(r"\.[qkv]_proj\.bias$", name) for name in tensors),
        fusion="taps",
        taps=_taps(own, tensors, read),
        target_hidden_size=None if read == config_sizes["hidden_size"] else read,
        tap_norm=_tap_norm(own, tensors),
        norm_before_residual=bool(own.get("norm_before_residual", False)),
        feed_back_normed=dialect.name in _OF_SPECULATORS and bool(own.get("norm_output", False)),
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        own_head=HEAD in tensors,
        own_embeddings=_own_embeddings(own, dialect, tensors, read != config_sizes["hidden_size"]),
        **shape,
    )
    return config, tensors


def is_unsettled(dialect: Dialect, config: DrafterConfig) -> bool:
    """Whether a release does not tell if what is fed back has passed the final norm.

    EAGLE-3 feeds back the state before it, EAGLE-3.1, known by its norm for each tap, the one behind it; only
    speculators says which. In one pass nothing is fed back.
    """
    told = dialect.name in _OF_SPECULATORS or config.drafting == "parallel"
    return config.tap_norm == "each" and not told


def _our_layer(match: re.Match[str]) -> str:
    return f"layers.{match[1] or '0.'}"


def _refuse_others(llama: Facts, own: Facts, dialect: Dialect) -> None:
    """Raise CheckpointError where a fact says what is computed nowhere here."""
    plain = {"hidden_act": "silu", "logit_scale": 1.0}
    for name, known in plain.items():
        if (value := llama.get(name, known)) != known:
            raise CheckpointError(f"{llama.path}: {name} is {value!r}; this version knows {known!r} only")
    if dialect.name not in _OF_SPECULATORS and own.get("norm_output", True) is not True:
        raise CheckpointError(
            f"{own.path}: norm_output is false, so that its LM head reads states without a norm; this "
            "version knows drafters with one only"
        )


def _taps(own: Facts, tensors: Tensors, read: int) -> tuple[int, ...]:
    """Return the layers that are stated; none mean the usual three."""
    inside = own.values.get("eagle_config") or {}
    name = "eagle_aux_hidden_state_layer_ids"
    stated = own.values.get(name) or inside.get(name) or ()
    if not isinstance(stated, Sequence) or isinstance(stated, str):
        raise CheckpointError(f"{own.path}: {name} is {stated!r}; expected a list of layers")
    taps, width = tuple(stated), _width(tensors)
    if width is not None and width != read * (len(taps) or 3):
        layers = f"layers {list(taps)}" if taps else "the usual 3 layers"
        raise CheckpointError(
            f"{own.path}: fc.weight reads {width} values, but {layers} of a target of hidden size {read} "
            f"give {read * (len(taps) or 3)}: state {name} and target_hidden_size"
        )
    return taps


def _width(tensors: Tensors) -> int | None:
    fc = tensors.get("fc.weight")
    return fc.shape[1] if fc is not None and fc.dim() == 2 else None


def _tap_norm(own: Facts, tensors: Tensors) -> TapNorm:
    """Return the norm; one that config.json promises is then missed among the tensors."""
    if "fc_norm.0.weight" in tensors or own.values.get("fc_norm") is True:
        return "each"
    return "joint" if "input_norm.weight" in tensors or own.values.get("norm_before_fc") else "none"


def _own_embeddings(own: Facts, dialect: Dialect, tensors: Tensors, narrower: bool) -> bool:
    """Whether embeddings in the file are the drafter's own, and no copy of the target's."""
    if dialect.name in _PARALLEL or narrower:
        return True
    if dialect.name in _OF_SPECULATORS:
        return bool(own.values.get("embed_requires_grad"))
    # The original code then reads the file's table, also where the sizes are equal.
    return EMBEDDINGS in tensors and own.values.get("target_hidden_size") is not None


def _masks(own: Facts, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return P-EAGLE's choices, and the tensors with those of its mask rows under our names."""
    choices: dict[str, Any] = {"drafting": "parallel", "num_masks": _TRAINED_DEPTHS - 1}
    choices |= {"shared_mask": True, "mask_feature": "learned"}
    named = dict(tensors)
    if (table := named.get(EMBEDDINGS)) is not None:
        token = _mask_token(own, len(table))
        named["mask_embed.weight"] = table[token : token + 1]
    if "mask_hidden" in named:
        named["mask_hidden"] = named["mask_hidden"].reshape(1, -1)
    return choices, named


def _mask_token(own: Facts, vocab: int) -> int:
    """Return the token whose embedding mask rows have; raises CheckpointError where the file says none."""
    inside = own.values.get("dflash_config") or {}
    names = ("mask_token_id", "pard_token", "ptd_token_id")
    stated = [inside.get("mask_token_id"), *(own.values.get(name) for name in names)]
    token = next((value for value in stated if value is not None), None)
    if not isinstance(token, int) or not 0 <= token < vocab:
        raise CheckpointError(
            f"{own.path}: mask_token_id, the token that mask rows stand for, is {token!r}; expected one of "
            f"{vocab} tokens: ask who trained the drafter, and state it"
        )
    return token
