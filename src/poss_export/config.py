"""Frozen descriptions of targets, drafters and trees, parsed once at the edge.

No torch here: the runtime reads the same facts from a bundle's manifest.
"""

from dataclasses import asdict, dataclass, fields
from reprlib import repr as shortened
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from poss_export.errors import CheckpointError, InputError

Precision = Literal["fp32", "fp16", "bf16"]
# How a graph is quantised: 8-bit weights, activations of one to four 8-bit digits, fixed scales; 8- or
# 4-bit weights only; float8.
Scheme = Literal["w8a8", "w8a16", "w8a24", "w8a32", "int8", "int4", "fp8"]
DraftPrecision = Literal[Scheme, "float"]
CacheForm = Literal["shared", "static"]
Observer = Literal["min-max", "percentile", "entropy", "mse"]  # how far the range of an activation reaches


_MOST, _MOST_LAYERS = 2**31 - 1, 1024  # of any size, and of what is made one by one


def check_fields(config: Any, whose: str, sizes: range = range(1, _MOST + 1)) -> None:
    """Raise CheckpointError where a field of a dataclass, read from a file, is not of its annotated kind.

    Whole numbers are in `sizes`, or 0 where that is the default; real ones are finite and above 0.
    """
    for field in fields(config):
        most = _MOST_LAYERS if field.name in ("num_layers", "num_specialists") else sizes[-1]
        allowed = range(0 if field.default == 0 else sizes[0], most + 1)
        if not _fits(value := getattr(config, field.name), field.type, allowed):
            raise CheckpointError(
                f"the {whose} {field.name} is {shortened(value)}; expected {_words(field.type, allowed)}: "
                "check its configuration"
            )


def _fits(value: Any, kind: Any, sizes: range) -> bool:
    origin, kinds = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, one, sizes) for one in kinds)
    if kind is Any or origin is Literal:
        return kind is Any or value in kinds
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and value in sizes
    if kind is float:
        return isinstance(value, int | float) and (0 < value < 1e30 or value == sizes[0])
    if not isinstance(value, origin or kind):
        return False
    if origin is dict:
        return all(_fits(one, kinds[1], sizes) for one in value.values())
    if origin is tuple:
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(kinds) == len(value) and all(map(_fits, value, kinds, [sizes] * len(value)))
    return True


def _words(kind: Any, sizes: range) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_words(one, sizes) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    known = {bool: "true or false", int: f"a whole number from {sizes[0]} to {sizes[-1]}"}
    known |= {float: "a number above 0", type(None): "null"}
    return known.get(kind, str(kind))


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; `factor` and the fields below it are used where `scaling` needs them."""

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # whether yarn's band begins and ends at whole frequencies
    attention_factor: float = 1.0  # of cosine and sine

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "rotary embedding's")


@dataclass(frozen=True)
class TargetConfig:
    """Facts of a target decoder (Llama 2/3, SmolLM2, Mistral, Phi-3/4, Qwen2, Qwen3)."""

    architecture: Literal["llama", "mistral", "phi3", "qwen2", "qwen3"]
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

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "target's")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_kv_heads}: the configuration is damaged; fetch the checkpoint again"
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
        attention = 2 * hidden * (queries + keys)
        attention += self.qkv_bias * (queries + 2 * keys) + self.qk_norm * 2 * self.head_dim
        attention += self.output_bias * hidden + self.mlp_bias * (2 * self.intermediate_size + hidden)
        layer = attention + 3 * hidden * self.intermediate_size + 2 * hidden
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * hidden
        return tables + self.num_layers * layer + hidden

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TargetConfig":
        """Read what `to_dict` wrote."""
        return cls(**{**values, "rope": RopeConfig(**values["rope"])})


Fusion = Literal["linear", "gated", "guided"]
Alignment = Literal["joint", "split"]
Drafting = Literal["tree", "parallel"]
MaskFeature = Literal["learned", "repeat_last", "zeros", "none"]


@dataclass(frozen=True)
class DrafterConfig:
    """Facts of a drafter: its four choices (fusion, alignment, specialists, drafting) and its sizes.

    `positions_per_specialist` None means that the only specialist drafts every position.
    `vocab_size` is the target's; `draft_vocab_size` ids of it can be proposed.

    For drafting "parallel": `num_masks` rows stand for the positions after the first, each with an embedding
    of its own unless `shared_mask`, and with the feature that `mask_feature` says. Of the `num_layers` that a
    row passes, the last is its specialist.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    rope: RopeConfig = RopeConfig()
    fusion: Fusion = "linear"
    fusion_bias: bool = False
    qkv_bias: bool = False
    alignment: Alignment = "joint"
    drafting: Drafting = "tree"
    num_specialists: int = 1
    positions_per_specialist: int | None = None
    num_layers: int = 1
    num_masks: int = 0
    shared_mask: bool = False
    mask_feature: MaskFeature = "learned"

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "drafter's")
        if self.num_specialists > 1 and self.positions_per_specialist is None:
            raise CheckpointError(
                f"a drafter with {self.num_specialists} specialists needs positions_per_specialist "
                "(how many draft positions each one serves): add it to the drafter's config.json"
            )
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"drafter num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                "its configuration is damaged; fetch the checkpoint again"
            )
        if self.drafting == "tree" and (self.num_layers, self.num_masks) != (1, 0):
            raise CheckpointError(
                f"a drafter with drafting 'tree' has num_layers {self.num_layers} and num_masks "
                f"{self.num_masks}; only drafting 'parallel' takes more than 1 layer, or masks"
            )
        if self.drafting == "parallel" and self.num_masks < 1:
            raise CheckpointError(
                f"a drafter with drafting 'parallel' needs num_masks of at least 1, not {self.num_masks}"
            )

    @property
    def longest_draft(self) -> int | None:
        """Draft positions there are: one more than masks; None where a drafter can go on for ever."""
        return self.num_masks + 1 if self.drafting == "parallel" else None

    def specialist(self, position: int) -> int:
        """Return the specialist that drafts `position` (1-based), s(j) = min((j-1) // p, S-1)."""
        if self.positions_per_specialist is None:
            return 0
        return min((position - 1) // self.positions_per_specialist, self.num_specialists - 1)

    def num_caches(self, depth: int) -> int:
        """Caches for drafts of `depth`: one for each shared layer, then one for each specialist in use."""
        return self.num_layers + self.specialist(depth)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DrafterConfig":
        """Read what `to_dict` wrote; raises CheckpointError that names a missing or unknown field."""
        try:
            return cls(**{**values, "rope": RopeConfig(**values["rope"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"drafter configuration: {error}; expected the config.json that `poss-export train` writes"
            ) from error


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
