"""Names, dtypes and symbolic shapes of every graph: exporters write it, sessions feed it.

A dimension is an int or a name; `docs/graph-contract.md` explains each tensor.
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from poss_export.config import Precision, TargetConfig, TreeShape
from poss_export.drafter_config import DrafterConfig
from poss_export.errors import BundleError

Dim = int | str

PAST, PRESENT = "past_key_values", "present"  # prefixes of the cache tensors' names
WIDEST = 32  # tokens that runtime/sessions/ort.py may fill a narrow call up to: evaluation/ measures no more
FLOAT: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output; `dtype` is numpy's name for it, or "bfloat16"."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_cache(self) -> bool:
        """Whether this is a cache, past or present."""
        return self.name.startswith((f"{PAST}.", f"{PRESENT}."))

    @property
    def host_dtype(self) -> str:
        """The type of a numpy array that holds this tensor; of bfloat16, which numpy lacks, the bits."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a tensor whose dimensions are all known."""
        sizes = tuple(dim for dim in self.shape if isinstance(dim, int))
        assert len(sizes) == len(self.shape), self
        return sizes

    @property
    def nbytes(self) -> int:
        """The size in bytes of a tensor whose dimensions are all known."""
        return prod(self.sizes) * np.dtype(self.host_dtype).itemsize

    def with_sizes(self, **sizes: int) -> "TensorSpec":
        """Return the same tensor with these dimensions known."""
        return replace(
            self, shape=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in self.shape)
        )


@dataclass(frozen=True)
class GraphContract:
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def feature_output(self) -> str:
        """The output of a target graph that its drafter reads."""
        return "taps" if any(spec.name == "taps" for spec in self.outputs) else "features"

    @property
    def noise(self) -> TensorSpec:
        """The noise that a draft graph adds to its logits, by depth and draft id."""
        return next(spec for spec in self.inputs if spec.name == "gumbel_noise")

    @property
    def aliases(self) -> dict[str, str]:
        """The cache inputs, each with the output that is written to the same memory."""
        past, present = ([s.name for s in side if s.is_cache] for side in (self.inputs, self.outputs))
        return dict(zip(past, present, strict=True))

    def cache_bytes(self, capacity: int) -> int:
        """Return the size of the caches for one sequence of `capacity` tokens."""
        sized = self.with_sizes(batch=1, capacity=capacity)
        return sum(spec.nbytes for spec in sized.inputs if spec.is_cache)

    def with_sizes(self, **sizes: int) -> "GraphContract":
        """Return the same contract with these dimensions known."""
        return GraphContract(
            tuple(spec.with_sizes(**sizes) for spec in self.inputs),
            tuple(spec.with_sizes(**sizes) for spec in self.outputs),
        )

    def check(self, inputs: list[TensorSpec], outputs: list[TensorSpec], graph: str) -> None:
        """Raise BundleError that names the first tensor of `graph` that differs from this contract."""
        for side, want, have in (("input", self.inputs, inputs), ("output", self.outputs, outputs)):
            found = {spec.name: spec for spec in have}
            for spec in want:
                if spec.name not in found:
                    raise BundleError(f"{graph}: {side} {spec.name!r} is missing; rebuild the bundle")
                other = found.pop(spec.name)
                fixed = [(a, b) for a, b in zip(spec.shape, other.shape, strict=False) if isinstance(a, int)]
                if (
                    other.dtype != spec.dtype
                    or len(other.shape) != len(spec.shape)
                    or any(isinstance(b, int) and a != b for a, b in fixed)
                ):
                    raise BundleError(
                        f"{graph}: {side} {spec.name!r} is {other.dtype} {list(other.shape)}, "
                        f"expected {spec.dtype} {list(spec.shape)}; rebuild the bundle"
                    )
            if found:
                raise BundleError(f"{graph}: unknown {side}s {sorted(found)}; rebuild the bundle")


def cache_names(prefix: str, layers: int) -> list[str]:
    """Return the cache tensor names in graph order: key and value of layer 0, of layer 1, ..."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _caches(prefix: str, layers: int, dtype: str, kv_heads: int, head_dim: int) -> tuple[TensorSpec, ...]:
    shape: tuple[Dim, ...] = ("batch", kv_heads, "capacity", head_dim)
    return tuple(TensorSpec(name, dtype, shape) for name in cache_names(prefix, layers))


def target_contract(config: TargetConfig, precision: Precision, taps: tuple[int, ...] = ()) -> GraphContract:
    """Return the contract of the target graph, the same for both cache forms.

    With `taps` it gives the residual streams that enter these layers, in place of features.
    """
    dtype = FLOAT[precision]
    caches = (config.num_layers, dtype, config.num_kv_heads, config.head_dim)
    return GraphContract(
        inputs=(
            TensorSpec("input_ids", "int64", ("batch", "seq")),
            TensorSpec("position_ids", "int64", ("batch", "seq")),
            TensorSpec("tree_mask", "bool", ("batch", "seq", "seq")),
            TensorSpec("past_length", "int64", ("batch",)),
            TensorSpec("logits_rows", "int64", ("batch", "rows")),
            *_caches(PAST, *caches),
        ),
        outputs=(
            TensorSpec("logits", dtype, ("batch", "rows", config.vocab_size)),
            TensorSpec("next_tokens", "int64", ("batch", "rows")),
            TensorSpec("taps", dtype, ("batch", "seq", len(taps) * config.hidden_size))
            if taps
            else TensorSpec("features", dtype, ("batch", "seq", config.hidden_size)),
            *_caches(PRESENT, *caches),
        ),
    )


def draft_contract(config: DrafterConfig, tree: TreeShape, precision: Precision) -> GraphContract:
    """Return the contract of the draft graph, the same for every drafter family.

    The drafter reads embeddings of the new tokens, not their ids: the table is the target's and is
    not held twice (docs/decisions/0003); one with a table of its own reads ids. Noise is added to the logits
    of each depth: 0 where the target is greedy (docs/decisions/0029). Specialists that no position up to
    `tree.depth` uses are not in the graph.
    """
    dtype = FLOAT[precision]
    caches = (config.num_caches(tree.depth), dtype, config.num_kv_heads, config.head_dim)
    return GraphContract(
        inputs=(
            TensorSpec("next_tokens", "int64", ("batch", "rows"))
            if config.own_embeddings
            else TensorSpec("next_token_embeddings", dtype, ("batch", "rows", config.hidden_size)),
            TensorSpec("features", dtype, ("batch", "rows", config.feature_size)),
            TensorSpec("row_count", "int64", ("batch",)),
            TensorSpec("past_length", "int64", ("batch",)),
            TensorSpec("gumbel_noise", "float32", ("batch", tree.depth, config.draft_vocab_size)),
            *_caches(PAST, *caches),
        ),
        outputs=(
            TensorSpec("tree_tokens", "int64", ("batch", tree.nodes)),
            TensorSpec("tree_parents", "int64", ("batch", tree.nodes)),
            TensorSpec("tree_scores", "float32", ("batch", tree.nodes)),
            *_caches(PRESENT, *caches),
        ),
    )
