"""Checkpoints in the layouts of public releases: exact names and shapes, tiny sizes, seeded weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Of a drafter; the widths of a head are hidden / heads, as in all these releases."""

    hidden: int = 32
    inner: int = 40
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 48

    @property
    def config(self) -> dict[str, Any]:
        """Llama's fields; the number of layers is that of the target, as in some releases."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": 36,
            "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "rope_scaling": None,
            "rope_theta": 500.0,
            "hidden_act": "silu",
        }

    def layer(self, prefix: str, *, down: int = 1, reads: int = 1, qkv_bias: bool = False) -> Shapes:
        """One layer that reads `reads` vectors and whose MLP writes `down`."""
        hidden, inner, kv = self.hidden, self.inner, self.kv_heads * self.hidden // self.heads
        rows = {"q": hidden, "k": kv, "v": kv}
        shapes: Shapes = {f"{prefix}.self_attn.{n}_proj.weight": (r, reads * hidden) for n, r in rows.items()}
        if qkv_bias:
            shapes |= {f"{prefix}.self_attn.{n}_proj.bias": (r,) for n, r in rows.items()}
        return shapes | {
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (down * hidden, inner),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }

    def fc(self, name: str = "fc", *, bias: bool, reads: int = 2) -> Shapes:
        """The matrix that fuses embedding and feature."""
        return {f"{name}.weight": (self.hidden, reads * self.hidden)} | (
            {f"{name}.bias": (self.hidden,)} if bias else {}
        )

    @property
    def table(self) -> tuple[int, int]:
        """Shape of the embedding table and of the LM head."""
        return self.vocab, self.hidden


TINY = Sizes()


@dataclass(frozen=True)
class Layout:
    """A release without its weights."""

    config: dict[str, Any]
    shapes: Shapes

    def random(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Weights that are large enough for every part to show."""
        generator = torch.Generator().manual_seed(7)
        tensors = {}
        for name, shape in self.shapes.items():
            spread = 0.8 * shape[-1] ** -0.5 if len(shape) > 1 else 0.3
            values = torch.randn(shape, generator=generator) * spread + float("norm" in name)
            tensors[name] = values.to(dtype)
        return tensors

    def meta(self) -> dict[str, Tensor]:
        """Names and shapes without weights."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


def eagle(sizes: Sizes = TINY, *, bias: bool = True, qkv_bias: bool = False) -> Layout:
    shapes = sizes.fc(bias=bias) | sizes.layer("layers.0", qkv_bias=qkv_bias)
    return Layout(sizes.config, {"embed_tokens.weight": sizes.table, **shapes})


def vllm(sizes: Sizes = TINY, *, bias: bool = True) -> Layout:
    """As the published converter writes it, which adds the target's LM head."""
    plain = eagle(sizes, bias=bias)
    nested = plain.config | ({"eagle_fc_bias": True} if bias else {})
    return Layout({"model_type": "eagle", "model": nested}, {**plain.shapes, "lm_head.weight": sizes.table})


def speculators(sizes: Sizes = TINY, *, bias: bool = False) -> Layout:
    config = {
        "architectures": ["EagleSpeculator"],
        "speculators_model_type": "eagle",
        "fusion_bias": bias,
        "layernorms": False,
        "transformer_layer_config": sizes.config,
    }
    return Layout(config, sizes.fc("fusion_fc", bias=bias) | sizes.layer("transformer"))


def poss(sizes: Sizes = TINY, *, specialists: int = 3, bias: bool = True) -> Layout:
    shapes = sizes.fc(bias=bias)
    for s in range(specialists):
        shapes |= sizes.layer(f"layers.{s}")
    # Its training states no bias and makes one all the same.
    return Layout({**sizes.config, "bias": False}, shapes)


def fspad(sizes: Sizes = TINY) -> Layout:
    hidden, inner = sizes.hidden, sizes.inner
    shapes = sizes.fc("fc.fc", bias=True) | {
        "embed_tokens.weight": sizes.table,
        "fc.post_attention_layernorm.weight": (hidden,),
        "fc.mlp.gate_proj.weight": (inner, hidden),
        "fc.mlp.up_proj.weight": (inner, hidden),
        "fc.mlp.down_proj.weight": (hidden, inner),
    }
    return Layout(sizes.config, shapes | sizes.layer("layers.0", down=2))


def griffin(sizes: Sizes = TINY) -> Layout:
    hidden, inner = sizes.hidden, sizes.inner
    shapes = sizes.fc("fc.fc", bias=True) | {
        "embed_tokens.weight": sizes.table,
        "fc.post_attention_layernorm.weight": (hidden,),
        "fc.mlp.input_layernorm.weight": (hidden,),
        "fc.mlp.up_proj.weight": (inner, 2 * hidden),
        "fc.mlp.down_proj.weight": (hidden, inner),
    }
    return Layout(sizes.config, shapes | sizes.layer("layers.0", down=2))


def parallelspec(
    sizes: Sizes = TINY, *, layers: int = 1, shared: bool = False, feature: str = "learned"
) -> Layout:
    choices = {"num_masks": 4, "shared_mask": shared, "mask_feature": feature, "tree_choices": None}
    shapes = eagle(sizes, bias=False).shapes | {"mask_embed.weight": (1 if shared else 4, sizes.hidden)}
    if feature == "learned":
        shapes["mask_hidden"] = (1, sizes.hidden)
    for i in range(1, layers):
        shapes |= sizes.layer(f"layers.{i}")
    return Layout({**sizes.config, **choices}, shapes)


def write(
    folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], form: str = "safetensors"
) -> Path:
    """Write a checkpoint's folder; form: "safetensors", "bin", or either with "-shards" behind it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    suffix, _, shards = form.partition("-")
    forms: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], None]]] = {
        "safetensors": ("model.safetensors", save_file),
        "bin": ("pytorch_model.bin", torch.save),
    }
    name, save = forms[suffix]
    if not shards:
        save(tensors, folder / name)
        return folder
    files = {tensor: f"{i % 2}-of-2-{name}" for i, tensor in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save({tensor: tensors[tensor] for tensor in tensors if files[tensor] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": files}))
    return folder
