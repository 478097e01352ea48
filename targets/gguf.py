"""Targets from GGUF files: the `gguf` package reads and dequantises, this module names and un-permutes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poss_export.config import RopeConfig, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.architectures import check_architecture
from poss_export.targets.packing import pack
from poss_export.targets.rope import inverse_frequencies
from poss_export.targets.weights import Stored, Weight

_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's GGUF files call themselves llama
_HUGGING_FACE_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE)  # llama.cpp's names of split files
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_ROPE = (1.0, 4.0, 8192)  # of all Llama 3.x: low and high frequency factor, original positions
# What the decoder does not compute, and the value at which there is nothing to compute.
_PLAIN = {
    "expert_count": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
    "attention.scale": 0,
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `data` of type and shape `[rows, ...]`, quantised as `kind`, from `offset` on."""

    name: str
    file: Path
    offset: int  # bytes
    data_type: np.dtype[Any]
    data_shape: tuple[int, ...]
    kind: Any
    shape: tuple[int, ...]  # dequantised

    @classmethod
    def of(cls, file: Path, tensor: Any) -> "GgufTensor":
        """Take over what the `gguf` package says of a tensor of a file."""
        data, shape = tensor.data, tuple(int(size) for size in reversed(tensor.shape))
        return cls(
            tensor.name, file, int(tensor.data_offset), data.dtype, data.shape, tensor.tensor_type, shape
        )

    def read(self, first: int, last: int) -> Tensor:
        """Return rows in float32."""
        import gguf

        # Mapped anew each time: what is mapped and was read counts as memory until it is mapped no more.
        data = np.memmap(self.file, self.data_type, "r", self.offset, self.data_shape)
        rows = gguf.dequantize(np.asarray(data[first:last]), self.kind)
        return torch.from_numpy(np.require(rows, np.float32, ["W", "O"]))


@dataclass(frozen=True)
class GgufFile:
    """An opened model, in one file or several: `fields` is the header, `tensors` are not read."""

    name: str
    files: tuple[Path, ...]
    fields: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the header, or the default where there is none."""
        field = self.fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """Return a value of the header; raises CheckpointError where there is none."""
        if (value := self.get(key)) is None:
            raise CheckpointError(
                f"{self.files[0]}: its header has no {key!r}; convert the model again with a present "
                "llama.cpp, or use its Hugging Face folder"
            )
        return value


def is_gguf(path: Path) -> bool:
    """Whether a path is a file of this format, by its ending or by its first bytes (caches rename files)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".gguf" or file.read(4) == b"GGUF"


def open_gguf(path: Path) -> GgufFile:
    """Open a file, and those beside it where the model is split.

    Raises:
        CheckpointError: one is damaged, missing or of another model.
    """
    reader = _reader(path)
    split = reader.fields.get("split.count")
    if split is None or (count := split.contents()) < 2:
        return GgufFile(path.stem, (path,), reader.fields, _tensors(path, reader))
    name, files = _parts(path, count)
    readers = [_reader(file) for file in files]
    tensors = tuple(
        tensor for file, one in zip(files, readers, strict=True) for tensor in _tensors(file, one)
    )
    opened = GgufFile(name, files, readers[0].fields, tensors)
    if len(tensors) != (stated := opened.get("split.tensors.count", len(tensors))):
        raise CheckpointError(
            f"{path}: its {count} files hold {len(tensors)} tensors, their header says {stated}: they are of "
            "different models; fetch all again"
        )
    return opened


def _reader(path: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable GGUF file ({error}); it is damaged or incomplete: fetch it again"
        ) from error


def _tensors(file: Path, reader: Any) -> tuple[GgufTensor, ...]:
    return tuple(GgufTensor.of(file, tensor) for tensor in reader.tensors)


def _parts(path: Path, count: int) -> tuple[str, tuple[Path, ...]]:
    """Return the name of a split model, and its files in order."""
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(
            f"{path}: it is one of {count} files, told apart by their names; give it the name that it was "
            f"published with, which ends in -00001-of-{count:05}.gguf"
        )
    files = tuple(path.with_name(f"{match[1]}-{i:05}-of-{match[2]}{match[3]}") for i in range(1, count + 1))
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{path.parent}: {', '.join(missing)} is missing of {count} files; fetch it too"
        )
    return match[1], files


def read_config(file: GgufFile) -> TargetConfig:
    """Return the target's facts from a GGUF header.

    A sliding window caps `max_positions`, as for Hugging Face folders.
    """
    architecture = file.need("general.architecture")
    check_architecture(architecture, _ARCHITECTURES)

    def fact(name: str, default: Any = None) -> Any:
        key = f"{architecture}.{name}"
        return file.need(key) if default is None else file.get(key, default)

    for name, plain in _PLAIN.items():
        if (value := fact(name, plain)) != plain:
            raise CheckpointError(f"{file.files[0]}: {name} {value!r} is not supported")
    names = {tensor.name for tensor in file.tensors}
    heads, hidden = fact("attention.head_count"), fact("embedding_length")
    head_dim = fact("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := fact(name, head_dim)) != head_dim:
            raise CheckpointError(
                f"{file.files[0]}: {name} is {value}, but a head has {head_dim} values, and only heads that "
                "are alike and rotated as a whole are supported; use the Hugging Face folder"
            )
    return TargetConfig(
        architecture=architecture,
        vocab_size=len(file.need("tokenizer.ggml.tokens")),
        hidden_size=hidden,
        intermediate_size=fact("feed_forward_length"),
        num_layers=fact("block_count"),
        num_heads=heads,
        num_kv_heads=fact("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=float(np.float32(fact("attention.layer_norm_rms_epsilon"))),
        max_positions=min(fact("context_length"), fact("attention.sliding_window", 0) or float("inf")),
        rope=_read_rope(file, architecture, head_dim),
        tied_embeddings="output.weight" not in names,
        qkv_bias="blk.0.attn_q.bias" in names,
        qk_norm="blk.0.attn_q_norm.weight" in names,
        output_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_gate.bias" in names,
    )


def _read_rope(file: GgufFile, architecture: str, head_dim: int) -> RopeConfig:
    """Return the rotary embedding; Llama 3's is a tensor of what divides each frequency."""
    rope = f"{architecture}.rope"
    theta = file.get(f"{rope}.freq_base", RopeConfig.theta)
    kind = file.get(f"{rope}.scaling.type", "none")
    factor = file.get(f"{rope}.scaling.factor") or file.get(f"{rope}.scale_linear") or 1.0
    factors = [tensor.read(0, tensor.shape[0]) for tensor in file.tensors if tensor.name == _ROPE_FACTORS]
    if kind not in ("none", "linear") or (factors and factor != 1):
        raise CheckpointError(
            f"{file.files[0]}: rope scaling {kind!r} by {factor} is not supported in GGUF files; this "
            "version knows none, linear and Llama 3's factors: use the Hugging Face folder"
        )
    if not factors:
        return RopeConfig(theta) if factor == 1 else RopeConfig(theta, "linear", factor)
    plain, scaled = RopeConfig(theta), RopeConfig(theta, "llama3", float(factors[0].max()), *_LLAMA3_ROPE)
    for known in (plain, scaled):
        expected = inverse_frequencies(plain, head_dim) / inverse_frequencies(known, head_dim)
        if factors[0].shape == expected.shape and torch.allclose(factors[0], expected, rtol=1e-4):
            return known
    raise CheckpointError(
        f"{file.files[0]}: {_ROPE_FACTORS} holds other factors than those of Llama 3; use the Hugging Face "
        "folder"
    )


def read_weights(tensors: tuple[GgufTensor, ...], config: TargetConfig) -> dict[str, Weight]:
    """Return the weights of a decoder, which are dequantised when they are used.

    Raises:
        CheckpointError: as `pack`.
    """
    found = {
        _hugging_face_name(t.name): Stored(t.shape, torch.float32, t.read)
        for t in tensors
        if t.name != _ROPE_FACTORS
    }
    if config.architecture == "llama":
        halves = torch.arange(config.head_dim).view(-1, 2).T.flatten()  # llama.cpp interleaves llama's
        for name in (name for name in found if ".q_proj." in name or ".k_proj." in name):
            found[name] = found[name].in_order(halves)
    return pack(config, found)


def _hugging_face_name(name: str) -> str:
    return ".".join(_HUGGING_FACE_NAMES.get(part, part) for part in name.split("."))
