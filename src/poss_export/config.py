"""Frozen descriptions of targets and trees, parsed once at the edge.

No torch here: the runtime reads the same facts from a bundle's manifest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from poss_export.errors import CheckpointError, InputError
from poss_export.fields import check_fields

Precision = Literal["fp32", "fp16", "bf16"]
# How a graph is quantised: 8-bit weights, activations of one to four 8-bit digits, fixed scales; 8- or
# 4-bit weights only; float8.
Scheme = Literal["w8a8", "w8a16", "w8a24", "w8a32", "int8", "int4", "fp8"]
DraftPrecision = Literal[Scheme, "float"]
CacheForm = Literal["shared", "static"]
Architecture = Literal[
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "mixtral",
    "qwen3_moe",
]
Choice = TypeVar("Choice")
Observer = Literal["min-max", "percentile", "entropy", "mse"]  # how far the range of an activation reaches


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; `factor` and the fields below it are used where `scaling` needs them."""

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # whether yarn's band begins and ends at whole frequencies
    attention_factor: float = 1.0  # of cosine and sine
    divisors: tuple[float, ...] = ()  # of longrope's frequencies, one each
    rotated: int | None = None  # the first values of a head, so many, are rotated; None: all

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "rotary embedding's")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RopeConfig":
        """Read the fields as JSON has them."""
        return cls(**{**values, "divisors": tuple(values.get("divisors", ()))})


@dataclass(frozen=True)
class TargetConfig:
    """Facts of a target decoder; docs/targets.md names the architectures."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int  # longest context the target was made for, tokens
    rope: RopeConfig = RopeConfig()
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    output_bias: bool = False  # of attention
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gates
    num_experts: int = 0  # MLPs of `intermediate_size` in each layer; 0: one that every token passes
    experts_per_token: int = 0
    normed_experts: bool = True  # whether the weights of those that a token passes sum to 1
    outer_norms: bool = False  # norms behind attention and MLP too, as Gemma 2 and 3 have
    embedding_scale: float = 1.0  # what the decoder multiplies embeddings by; drafters read them as stored
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    attention_cap: float | None = None  # c of c * tanh(score / c)
    logit_cap: float | None = None  # likewise
    logit_divisor: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add; their last weights have it in them
    windowed_layers: tuple[int, ...] = ()
    window: int | None = None  # how many of the last tokens these see, their own included; None: all
    window_rope: RopeConfig | None = None  # of these layers; None: that of the others

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "target's")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_kv_heads}: the configuration is damaged; fetch the checkpoint again"
            )
        if self.experts_per_token > self.num_experts:
            raise CheckpointError(
                f"a token passes {self.experts_per_token} of {self.num_experts} experts: the configuration "
                "is damaged; fetch the checkpoint again"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"a head has {self.head_dim} values, which have no halves to rotate: the configuration is "
                "damaged; fetch the checkpoint again"
            )

    @property
    def parameters(self) -> int:
        """Number of weights; a tied table counts once."""
        hidden, queries, keys = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        norms = (4 if self.outer_norms else 2) * hidden
        attention = 2 * hidden * (queries + keys)
        attention += self.qkv_bias * (queries + 2 * keys) + self.qk_norm * 2 * self.head_dim
        attention += self.output_bias * hidden + self.mlp_bias * (2 * self.intermediate_size + hidden)
        router = self.num_experts * hidden
        layer = attention + self.mlps * 3 * hidden * self.intermediate_size + router + norms
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * hidden
        return tables + self.num_layers * layer + hidden

    @property
    def mlps(self) -> int:
        """MLPs in a layer."""
        return max(self.num_experts, 1)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The rotary embeddings: first that of layers without a window, last that of layers with one."""
        return (self.rope,) if self.window_rope is None else (self.rope, self.window_rope)

    def of_layer(self, layer: int, choices: Sequence[Choice]) -> Choice:
        """Return the first of `choices` for a layer without a window, the last for one that has it."""
        return choices[-1 if layer in self.windowed_layers else 0]

    def within(self, capacity: int) -> "TargetConfig":
        """Return the facts of a target that reads no more tokens: a window that hides none is no window."""
        return self if self.window is None or self.window < capacity else replace(self, window=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TargetConfig":
        """Read what `to_dict` wrote."""
        read = {**values, "rope": RopeConfig.from_dict(values["rope"])}
        read["windowed_layers"] = tuple(values.get("windowed_layers", ()))
        if values.get("window_rope") is not None:
            read["window_rope"] = RopeConfig.from_dict(values["window_rope"])
        return cls(**read)


@dataclass(frozen=True)
class TreeShape:
    """Size of a drafted tree: `depth` levels, beam of `top_k`, best `nodes` kept.

    `nodes` are drafted tokens; the root is none of them. `width` counts it: rows of the target call. Planned
    rounds verify the part of a tree that pays (docs/planning.md), so a large one costs next to nothing.
    """

    depth: int = 4
    top_k: int = 4
    nodes: int = 23

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("depth", "top_k", "nodes"):
            if getattr(self, name) < 1:
                raise InputError(f"tree {name} is {getattr(self, name)}; it must be at least 1")
        if self.nodes > self.candidates:
            raise InputError(
                f"tree nodes is {self.nodes}, but depth {self.depth} and top-k {self.top_k} give only "
                f"{self.candidates} candidates: ask for fewer nodes, or more depth or top-k"
            )

    @classmethod
    def of(cls, depth: int, top_k: int, nodes: int | None = None) -> "TreeShape":
        """Return a shape; without `nodes` those of the default, or all candidates where there are fewer."""
        if nodes is None:
            nodes = min(cls.nodes, max(cls(depth, top_k, 1).candidates, 1))
        return cls(depth, top_k, nodes)

    @property
    def width(self) -> int:
        """Rows of the target call that verifies such a tree: the root and the nodes."""
        return self.nodes + 1

    @property
    def is_chain(self) -> bool:
        """Whether no node can have siblings."""
        return self.top_k == 1 or self.nodes == 1

    @property
    def candidates(self) -> int:
        """Candidates that the beam search scores: k + (depth - 1) k²."""
        return self.top_k + (self.depth - 1) * self.top_k**2


@dataclass(frozen=True)
class Thresholds:
    """What a quantised bundle must reach beside the pair in floating point, or it is not finished."""

    perplexity: float = 1.05  # at most so many times
    agreement: float = 0.85  # least share of tokens with the same likeliest next token
    tau: float = 0.85  # at least so many times
