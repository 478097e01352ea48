"""Targets from Hugging Face folders: config.json and safetensors (or .bin) weights.

No remote code, no pickled objects: `.bin` files are read with `weights_only=True`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poss_export.config import RopeConfig, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.decoder import Decoder
from poss_export.targets.json_file import read_json
from poss_export.targets.weights import build_decoder

Tensors = dict[str, Callable[[], Tensor]]  # by name, read when called

_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, each perhaps with an index
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DERIVED = "rotary_emb.inv_freq"  # old releases saved it; the configuration says the same


def published_name(folder: Path) -> str:
    """Return the name that a checkpoint was published as: that of its folder, unless a cache has named it."""
    folder = folder.resolve()
    # A download cache keeps a checkpoint as models--OWNER--NAME/snapshots/REVISION.
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def read_config(folder: Path) -> TargetConfig:
    """Return the target's facts from config.json.

    A sliding window caps `max_positions`: up to its width it is plain attention, and no further is supported.
    """
    values = read_json(folder / "config.json")

    def fact(name: str, default: Any = None) -> Any:
        value = values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(
                f"{folder / 'config.json'}: {name!r} is missing; fetch the checkpoint again"
            )
        return value

    architecture = fact("model_type")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"architecture {architecture!r} is not supported; this version knows {', '.join(_ARCHITECTURES)}"
        )
    _refuse_variants(values)
    heads, hidden = fact("num_attention_heads"), fact("hidden_size")
    return TargetConfig(
        architecture=architecture,
        vocab_size=fact("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fact("intermediate_size"),
        num_layers=fact("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fact("num_key_value_heads", heads),
        head_dim=fact("head_dim", hidden // heads),
        rms_norm_eps=fact("rms_norm_eps"),
        max_positions=min(fact("max_position_embeddings"), _sliding_window(values)),
        rope=read_rope(values),
        tied_embeddings=fact("tie_word_embeddings", False),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
    )


def _refuse_variants(values: dict[str, Any]) -> None:
    """Refuse what the decoder would compute wrongly or not at all."""
    for name, plain in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if (value := values.get(name, plain)) != plain:
            raise CheckpointError(f"{name} {value!r} is not supported; this version knows {plain!r} only")
    if (quantised := values.get("quantization_config")) is not None:
        method = quantised.get("quant_method")
        raise CheckpointError(
            f"quantised weights ({method!r}) are not supported; use the original checkpoint"
        )


def _sliding_window(values: dict[str, Any]) -> int | float:
    used = values.get("use_sliding_window", values["model_type"] == "mistral")
    window: int | None = values.get("sliding_window")
    return window if used and window is not None else float("inf")


def read_rope(values: Mapping[str, Any]) -> RopeConfig:
    """Return the rotary embedding of a config.json; raises CheckpointError where it is an unknown one."""
    # transformers 5 writes rope_parameters; older releases wrote rope_theta and rope_scaling.
    facts = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = facts.get("rope_theta") or values.get("rope_theta") or RopeConfig.theta
    kind = facts.get("rope_type", facts.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    try:
        if kind == "linear":
            return RopeConfig(theta, "linear", facts["factor"])
        if kind == "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return RopeConfig(theta, "llama3", *(facts[name] for name in names))
    except KeyError as error:
        raise CheckpointError(f"rope scaling {kind!r} lacks {error}; fetch config.json again") from None
    raise CheckpointError(
        f"rope scaling {kind!r} is not supported; this version knows default, linear, llama3"
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, safetensors before .bin, all shards present."""
    for name in _WEIGHTS:
        if (index := folder / f"{name}.index.json").is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise CheckpointError(
                    f"{folder}: {', '.join(missing)} is missing of {len(shards)} weight files; fetch it again"
                )
            return tuple(folder / shard for shard in shards)
        if (folder / name).is_file():
            return (folder / name,)
    raise CheckpointError(
        f"{folder}: no weights; expected {' or '.join(_WEIGHTS)}, or an index of their shards"
    )


def open_weights(files: tuple[Path, ...]) -> Tensors:
    """Return the tensors by name, not read yet; reads every file's header.

    Raises:
        CheckpointError: a file is truncated or not what its name says.
    """
    opened: Tensors = {}
    for path in files:
        with _damage_translated(path):
            opened |= _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
    return opened


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")
    names = file.keys()
    return {name: partial(file.get_tensor, name) for name in names}


def _open_bin(path: Path) -> Tensors:
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it holds other things than tensors by name")
    return {name: partial(tensors.__getitem__, name) for name in tensors}


def read_decoder(config: TargetConfig, tensors: Tensors) -> Decoder:
    """Return the decoder with float32 weights, converted one tensor at a time."""

    def read(name: str) -> Tensor:
        tensor = tensors[name]()
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"tensor {name!r} is {tensor.dtype}: quantised weights are not supported; "
                "use the original checkpoint"
            )
        return tensor.float()

    derived = {name for name in tensors if name.endswith(DERIVED)}
    if config.tied_embeddings:
        derived.add("lm_head.weight")
    return build_decoder(config, tensors.keys() - derived, read)


@contextmanager
def _damage_translated(path: Path) -> Iterator[None]:
    import pickle

    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable weight file ({error}); it is damaged or incomplete: fetch it again"
        ) from error
