"""Dialects: whose drafter a folder holds, told from its config.json and the names and shapes of its tensors.

Tests are made in order and the first that holds decides, so one may rely on what those before it took. Most
families share names: only all facts together tell them apart (docs/checkpoints.md).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Values = Mapping[str, Any]  # of config.json
Tensors = Mapping[str, Tensor]  # by name, without a leading "model."

OURS = "poss-export"
SPECULATORS = "speculators EAGLE"
VLLM = "vLLM EAGLE"
PARALLEL = "ParallelSpec-style"
FSPAD = "FSPAD"
GRIFFIN = "GRIFFIN"
POSS = "PosS"
EAGLE = "EAGLE"
EAGLE3 = "EAGLE-3"
SPECULATORS_EAGLE3 = "speculators EAGLE-3"
VLLM_EAGLE3 = "vLLM EAGLE-3"
MODEL_OPTIMIZER = "Model-Optimizer EAGLE-3"
POSS_E3 = "PosS-E3"
P_EAGLE = "P-EAGLE"
SPECULATORS_P_EAGLE = "speculators P-EAGLE"
# They read inner layers of their target.
READ_TAPS = {EAGLE3, SPECULATORS_EAGLE3, VLLM_EAGLE3, MODEL_OPTIMIZER, POSS_E3, P_EAGLE, SPECULATORS_P_EAGLE}

_BLOCKS = "it fills in blocks of tokens, which no round here does"
_EXTRA_NORMS = (
    "embedding_layernorm.weight",
    "transformer.input_layernorm.weight",
    "pre_lm_head_layernorm.weight",
)


@dataclass(frozen=True)
class Dialect:
    """What a drafter checkpoint was recognised as.

    `reason` is the fact that decided, `refusal` why this version cannot use such a drafter (None: it can).
    """

    name: str
    reason: str
    refusal: str | None = None


def recognise(values: Values, tensors: Tensors) -> Dialect | None:
    """Return the dialect of a checkpoint, None where it is none that is known; reads no tensor's data."""
    for name, test, refusal in _ROWS:
        if reason := test(values, tensors):
            return Dialect(name, reason, refusal)
    return None


def count_layers(tensors: Tensors) -> int:
    """Return how many `layers.i` there are; config files often state another number."""
    return len({match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))})


def _ours(values: Values, tensors: Tensors) -> str | None:
    return "config.json has positions_per_specialist" if "positions_per_specialist" in values else None


def _normed_speculators(values: Values, tensors: Tensors) -> str | None:
    if values.get("speculators_model_type") != "eagle":
        return None
    norms = [name for name in _EXTRA_NORMS if name in tensors]
    return "config.json has layernorms: true" if values.get("layernorms") else _has(tensors, *norms[:1])


def _speculators(values: Values, tensors: Tensors) -> str | None:
    return _states_speculators(values) if values.get("speculators_model_type") == "eagle" else None


def _speculators_eagle3(values: Values, tensors: Tensors) -> str | None:
    return _states_speculators(values) if values.get("speculators_model_type") == "eagle3" else None


def _speculators_p_eagle(values: Values, tensors: Tensors) -> str | None:
    return _states_speculators(values) if values.get("speculators_model_type") == "peagle" else None


def _other_speculators(values: Values, tensors: Tensors) -> str | None:
    return _states_speculators(values) if "speculators_model_type" in values else None


def _states_speculators(values: Values) -> str:
    return f"config.json has speculators_model_type {values['speculators_model_type']!r}"


def _vllm(values: Values, tensors: Tensors) -> str | None:
    nested = values.get("model_type") == "eagle" and isinstance(values.get("model"), dict)
    return "config.json has model_type 'eagle' and a model inside" if nested else None


def _vllm_eagle3(values: Values, tensors: Tensors) -> str | None:
    norms = [name for name in tensors if name.endswith(".hidden_norm.weight")]
    nested = _vllm(values, tensors)
    return f"{nested}, and {_has(tensors, norms[0])}" if nested and norms else None


def _eagle4(values: Values, tensors: Tensors) -> str | None:
    return _architecture(values, "Eagle4")


def _dspark(values: Values, tensors: Tensors) -> str | None:
    return "config.json has markov_rank" if "markov_rank" in values else _architecture(values, "DSpark")


def _domino(values: Values, tensors: Tensors) -> str | None:
    inside = values.get("dflash_config") or {}
    if "domino" in (values.get("projector_type"), inside.get("projector_type")):
        return "config.json has projector_type 'domino'"
    return _architecture(values, "Domino")


def _jetspec(values: Values, tensors: Tensors) -> str | None:
    return _architecture(values, "JetSpec")


def _dflash(values: Values, tensors: Tensors) -> str | None:
    if "dflash_config" in values and "mask_hidden" not in tensors:  # vLLM keeps P-EAGLE's mask token there
        return "config.json has dflash_config"
    return _architecture(values, "DFlash")


def _parallel(values: Values, tensors: Tensors) -> str | None:
    return "config.json has num_masks" if "num_masks" in values else None


def _p_eagle(values: Values, tensors: Tensors) -> str | None:
    if values.get("parallel_drafting"):
        return "config.json has parallel_drafting"
    return _has(tensors, "mask_hidden") or _architecture(values, "PEagleDraftModel")


def _fspad(values: Values, tensors: Tensors) -> str | None:
    return _has(tensors, "fc.fc.weight", "fc.mlp.gate_proj.weight")


def _griffin(values: Values, tensors: Tensors) -> str | None:
    return _has(tensors, "fc.fc.weight", "fc.mlp.input_layernorm.weight")


def _poss_eagle3(values: Values, tensors: Tensors) -> str | None:
    layers = {match[1] for name in tensors if (match := re.match(r"((?:mid)?layers\.\d+)\.", name))}
    if len(layers) < 2 or not all(_reads_two_vectors(tensors, layer) for layer in layers):
        return None
    return f"each of its {len(layers)} layers has hidden_norm and reads two vectors"


def _reads_two_vectors(tensors: Tensors, layer: str) -> bool:
    norm, query = tensors.get(f"{layer}.hidden_norm.weight"), tensors.get(f"{layer}.self_attn.q_proj.weight")
    return norm is not None and query is not None and query.shape[1:] == (2 * norm.numel(),)


def _model_optimizer(values: Values, tensors: Tensors) -> str | None:
    norm = _has(tensors, "layers.0.hidden_norm.weight")
    return f"config.json has eagle_config, and {norm}" if norm and "eagle_config" in values else None


def _eagle3(values: Values, tensors: Tensors) -> str | None:
    if values.get("draft_vocab_size") is not None:
        return "config.json has draft_vocab_size"
    if any(name.startswith("midlayer.") for name in tensors):
        return "tensors are named midlayer.*"
    return _fc_reads(tensors, 3, values.get("target_hidden_size")) or _architecture(values, "Eagle3")


def _deep_eagle(values: Values, tensors: Tensors) -> str | None:
    norms = [name for name in tensors if re.fullmatch(r"layers\.\d+\.input_layernorm\.weight", name)]
    if not norms or count_layers(tensors) < 2 or not _fc_reads(tensors, 2):
        return None
    return f"of its {count_layers(tensors)} layers, some have input_layernorm"


def _poss(values: Values, tensors: Tensors) -> str | None:
    if count_layers(tensors) < 2 or not (fused := _fc_reads(tensors, 2)):
        return None
    return f"{fused}, and none of its {count_layers(tensors)} layers has input_layernorm"


def _eagle(values: Values, tensors: Tensors) -> str | None:
    if count_layers(tensors) != 1 or not (fused := _fc_reads(tensors, 2)):
        return None
    return f"{fused}, and there is one layer"


def _pard(values: Values, tensors: Tensors) -> str | None:
    parts = ("embed_tokens.weight", "layers.0.input_layernorm.weight", "norm.weight")
    whole = "pard_token" in values and _has(tensors, *parts)
    return "config.json has pard_token, and the tensors are a whole language model's" if whole else None


def _has(tensors: Tensors, *names: str) -> str | None:
    """Say that there are tensors of these names."""
    return f"there is {' and '.join(names)}" if names and all(name in tensors for name in names) else None


def _architecture(values: Values, *words: str) -> str | None:
    """Say that an architecture's name contains one of these words."""
    found = [name for name in values.get("architectures") or () if any(word in name for word in words)]
    return f"config.json has architecture {found[0]!r}" if found else None


def _fc_reads(tensors: Tensors, count: int, width: int | None = None) -> str | None:
    """Say that `fc.weight` reads `count` vectors, each of `width` values (None: as many as it writes)."""
    fc = tensors.get("fc.weight")
    if fc is None or fc.dim() != 2 or fc.shape[1] != count * (width or fc.shape[0]):
        return None
    return f"fc.weight reads {count} vectors"


# Name, test, and why such a drafter is refused. P-EAGLE and PosS-E3 have all that EAGLE-3 has, and more;
# ours has all that P-EAGLE has.
_ROWS: tuple[tuple[str, Callable[[Values, Tensors], str | None], str | None], ...] = (
    (OURS, _ours, None),
    ("speculators EAGLE with extra norms", _normed_speculators, "the drafters here have no such norms"),
    (SPECULATORS, _speculators, None),
    (SPECULATORS_EAGLE3, _speculators_eagle3, None),
    (SPECULATORS_P_EAGLE, _speculators_p_eagle, None),
    (
        "another speculators drafter",
        _other_speculators,
        "of speculators' types 'eagle', 'eagle3' and 'peagle' are known",
    ),
    (VLLM_EAGLE3, _vllm_eagle3, None),
    (VLLM, _vllm, None),
    (
        "EAGLE-4",
        _eagle4,
        "the licence of its official weights bans competing offerings, so that nothing here was made for it",
    ),
    ("DSpark", _dspark, _BLOCKS),
    ("Domino", _domino, _BLOCKS),
    ("JetSpec", _jetspec, _BLOCKS),
    ("DFlash", _dflash, _BLOCKS),
    (PARALLEL, _parallel, None),
    (P_EAGLE, _p_eagle, None),
    (FSPAD, _fspad, None),
    (GRIFFIN, _griffin, None),
    (POSS_E3, _poss_eagle3, None),
    (MODEL_OPTIMIZER, _model_optimizer, None),
    (EAGLE3, _eagle3, None),
    (
        "EAGLE of several layers",
        _deep_eagle,
        "specialists have no input norm, and a tree's rows pass one layer only",
    ),
    (POSS, _poss, None),
    (EAGLE, _eagle, None),
    ("PARD", _pard, "it is a language model of its own that reads no feature of the target"),
)
