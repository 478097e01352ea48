"""Targets from GGUF files: the `gguf` package reads and dequantises, this module names and un-permutes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poss_export.config import RopeConfig, TargetConfig
from poss_export.errors import CheckpointError
from poss_export.targets.decoder import Decoder
from poss_export.targets.weights import build_decoder
from poss_export.text import Text, TextConfig

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
_CONTROL_TOKEN, _USER_TOKEN = 3, 4  # tokenizer.ggml.token_type
# What llama.cpp's pre-tokenizer names mean in terms of the `tokenizers` library.
_DIGIT_SPLITTING_PRETOKENIZERS = ("smollm", "refact", "command-r")
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def open_gguf(path: Path) -> Any:
    """Return the file's reader; raises CheckpointError where it is damaged."""
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable GGUF file ({error}); it is damaged or incomplete: fetch it again"
        ) from error


def read_config(reader: Any) -> TargetConfig:
    """Return the target's facts from a GGUF header."""
    fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name}
    architecture = fields["general.architecture"]
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"architecture {architecture!r} is not supported; this version knows {', '.join(_ARCHITECTURES)}"
        )

    def fact(name: str, default: Any = None) -> Any:
        value = fields.get(f"{architecture}.{name}", default)
        if value is None:
            raise CheckpointError(f"GGUF header: {architecture}.{name} is missing; convert the model again")
        return value

    tensors = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in tensors or fact("rope.scaling.type", "none") != "none":
        raise CheckpointError("GGUF files with rope scaling are not supported; use the Hugging Face folder")
    heads, hidden = fact("attention.head_count"), fact("embedding_length")
    return TargetConfig(
        architecture=architecture,
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=hidden,
        intermediate_size=fact("feed_forward_length"),
        num_layers=fact("block_count"),
        num_heads=heads,
        num_kv_heads=fact("attention.head_count_kv", heads),
        head_dim=fact("attention.key_length", hidden // heads),
        rms_norm_eps=float(np.float32(fact("attention.layer_norm_rms_epsilon"))),
        max_positions=fact("context_length"),
        rope=RopeConfig(theta=fact("rope.freq_base", 10000.0)),
        tied_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
    )


def read_decoder(tensors: list[Any], config: TargetConfig) -> Decoder:
    """Return the decoder with float32 weights, dequantising the reader's `tensors` one at a time."""
    import gguf

    by_name = {_hugging_face_name(tensor.name): tensor for tensor in tensors}

    def read(name: str) -> Tensor:
        values = gguf.dequantize(by_name[name].data, by_name[name].tensor_type)
        tensor = torch.from_numpy(np.require(values, np.float32, "W"))
        # llama.cpp interleaves the rotary halves of llama's q and k rows; we rotate halves.
        if config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            halves = (-1, config.head_dim // 2, 2, *tensor.shape[1:])
            return tensor.reshape(halves).transpose(1, 2).reshape(tensor.shape)
        return tensor

    return build_decoder(config, by_name, read)


def _hugging_face_name(name: str) -> str:
    return ".".join(_HUGGING_FACE_NAMES.get(part, part) for part in name.split("."))


def read_text(reader: Any) -> Text:
    """Rebuild the tokenizer that the header describes (byte-level BPE only)."""

    def fact(name: str, default: Any = None) -> Any:
        field = reader.fields.get(f"tokenizer.{name}")
        return default if field is None else field.contents()

    if fact("ggml.model") != "gpt2":
        raise CheckpointError(
            f"GGUF tokenizer {fact('ggml.model')!r} cannot be rebuilt from the file; "
            "use the Hugging Face folder of this model"
        )
    tokens, kinds = fact("ggml.tokens"), fact("ggml.token_type")
    eos, bos = fact("ggml.eos_token_id"), fact("ggml.bos_token_id")
    in_front = bos if fact("ggml.add_bos_token", False) else None
    special = [i for i, kind in enumerate(kinds) if kind in (_CONTROL_TOKEN, _USER_TOKEN)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in special
        ],
        "pre_tokenizer": _pretokenizer(fact("ggml.pre", "gpt-2")),
        "post_processor": None if in_front is None else _in_front(tokens[in_front], in_front),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fact("ggml.merges")],
        },
    }
    return Text(
        json.dumps(tokenizer, ensure_ascii=False),
        TextConfig(
            stop_ids=(eos,),
            chat_template=fact("chat_template"),
            special_tokens=tuple(
                (f"{kind}_token", tokens[i]) for kind, i in (("bos", bos), ("eos", eos)) if i is not None
            ),
        ),
    )


def _in_front(token: str, token_id: int) -> dict[str, Any]:
    """Return the post-processor that puts a token in front of every plain prompt."""
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _pretokenizer(name: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if name in _DIGIT_SPLITTING_PRETOKENIZERS:
        steps = [{"type": "Digits", "individual_digits": True}, {**byte_level, "use_regex": True}]
    elif name in ("llama-bpe", "qwen2"):
        pattern = _QWEN2_PATTERN if name == "qwen2" else _LLAMA3_PATTERN
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [split, {**byte_level, "use_regex": False}]
    elif name in ("gpt-2", "default"):
        steps = [{**byte_level, "use_regex": True}]
    else:
        raise CheckpointError(f"GGUF pre-tokenizer {name!r} is unknown; use the Hugging Face folder instead")
    return {"type": "Sequence", "pretokenizers": steps}
