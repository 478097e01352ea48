"""compressed-tensors: groups of modules, each with its own kind of codes and its own tiles of scales."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poss_export.errors import CheckpointError
from poss_export.targets.float8 import weight as float8_weight
from poss_export.targets.grids import USE, Grid, Parts, Tile, columns_of, dequantised, tiles_of, unpack
from poss_export.targets.quantised import CACHE, CACHED, ROUNDED, Quantisation, float_type
from poss_export.targets.stated import Stated
from poss_export.targets.weights import Stored

_PACKED = "pack-quantized"
_PLAIN = {"int-quantized": ("int",), "float-quantized": ("float",), "naive-quantized": ("int", "float")}
_FORMATS = (_PACKED, *_PLAIN)
_REORDERED = ("group", "dynamic", True)
_WORD_BITS = (2, 4, 8)
_REGEX = "re:"


@dataclass(frozen=True)
class Scheme:
    """How the weights of a group of modules are quantised."""

    kind: str
    bits: int
    floating: bool
    packed: bool
    symmetric: bool
    reordered: bool
    tile: Tile


@dataclass(frozen=True)
class Group:
    """Which modules a scheme is for, by name, expression or class; without one their weights are floats."""

    targets: tuple[str, ...]
    scheme: Scheme | None
    activations: bool


def read_compressed(stated: Stated) -> Quantisation:
    """Return how weights are read that llm-compressor and its like write; activations are not rounded."""
    stated.among("quantization_status", ("compressed", "frozen"), "compressed")
    # Dense weights may have zeros in a pattern: they are stored.
    stated.part("sparsity_config").among("format", ("dense",), "dense", why="others leave zeros out")
    ignore, cached = stated.names("ignore"), bool(stated.get("kv_cache_scheme"))
    grouped = stated.part("config_groups")
    groups = tuple(_read_group(grouped.part(name), stated.get("format")) for name in grouped.values)
    stated.only(
        *("quant_method", "config_groups", "format", "ignore", "quantization_status", "kv_cache_scheme"),
        *("global_compression_ratio", "version", "sparsity_config"),
        *("run_compressed", "dequantize", "use_optimized_inference"),
        transform_config="its rotations are not computed here",
    )
    kinds = {group.scheme.kind: None for group in groups if group.scheme is not None}
    rounded = any(group.activations for group in groups)
    marks = frozenset({"weight_packed", "weight_scale"})
    return Quantisation(
        f"compressed-tensors ({'; '.join(kinds) or 'no weights'})",
        marks=marks,
        spent=marks | {"weight", "weight_shape", "weight_zero_point", "weight_g_idx"},
        read=partial(_weight, groups, ignore),
        unread=frozenset({"input_scale", "input_zero_point"} if rounded else ())
        | (CACHE if cached else set()),
        doubts=(ROUNDED,) * rounded + (CACHED,) * cached,
    )


def _read_group(stated: Stated, common: Any) -> Group:
    targets, activations = stated.names("targets"), bool(stated.get("input_activations"))
    stated.only("targets", "weights", "input_activations", "format")
    if stated.get("weights") is None:
        return Group(targets, None, activations)
    filled = Stated(stated.whose, {**stated.values, "format": stated.get("format", common)})
    return Group(targets, _read_scheme(stated.part("weights"), filled.among("format", _FORMATS)), activations)


def _read_scheme(stated: Stated, layout: str) -> Scheme:
    packed = layout == _PACKED
    kind = stated.among("type", ("int",) if packed else _PLAIN[layout], "int")
    if packed:
        bits = stated.among("num_bits", _WORD_BITS, 8, why="releases of the library pack others in two ways")
    else:
        bits = stated.among("num_bits", (8,) if kind == "float" else (4, 8), 8)
    symmetric = stated.among("symmetric", (True,) if kind == "float" else (True, False), True)
    order = stated.among("actorder", (None, False, "weight", "static", *_REORDERED))
    words, tile = _read_tile(stated)
    stated.among("dynamic", (False,), False)
    stated.only(
        *("type", "num_bits", "symmetric", "actorder", "strategy", "group_size", "block_structure"),
        *("dynamic", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"),
    )
    return Scheme(
        f"{kind}{bits}, {words}", bits, kind == "float", packed, symmetric, order in _REORDERED, tile
    )


def _read_tile(stated: Stated) -> tuple[str, Tile]:
    """Return what shares a scale, in words and as a tile."""
    size, block = stated.width("group_size", -1), stated.block("block_structure")
    plain = "group" if size is not None else "tensor" if stated.get("group_size") is None else "channel"
    strategy = stated.among("strategy", ("tensor", "channel", "group", "block"), plain)
    if strategy == "tensor":
        return "one scale a weight", (None, None)
    if strategy == "channel":
        return "a scale an output", (1, None)
    if strategy == "group":
        if size is None:
            raise stated.refused("group_size", "expected the inputs of a group")
        return f"groups of {size}", (1, size)
    if block is None:
        raise stated.refused("block_structure", "expected the sizes of a block")
    return f"blocks of {block[0]} x {block[1]}", block


def _weight(
    groups: tuple[Group, ...], ignore: tuple[str, ...], parts: Parts, dtype: torch.dtype | None
) -> Stored:
    scheme = _scheme_of(parts.module, groups, ignore)
    parts.only("weight", "weight_packed")
    if scheme.floating:
        if "weight_zero_point" in parts.tensors:  # of early files, which have it always
            _checked(scheme, parts, parts.need("weight_zero_point").whole().float())
        return float8_weight(parts, "weight_scale", scheme.tile, (), dtype)
    return _integer_weight(scheme, parts, dtype)


def _scheme_of(module: str, groups: tuple[Group, ...], ignore: tuple[str, ...]) -> Scheme:
    """Return how a module is quantised; a target that is its name goes first, then expressions, then types.

    Raises:
        CheckpointError: it is not to be, or several groups have it.
    """
    fitting = [(min(ranks), group.scheme) for group in groups if (ranks := _ranks(module, group.targets))]
    first = min((rank for rank, _ in fitting), default=0)
    schemes = {scheme for rank, scheme in fitting if rank == first}
    if _ranks(module, ignore) or schemes <= {None}:
        raise CheckpointError(
            f"{module!r} is quantised, but is in no group of quantization_config, or is ignored there; {USE}"
        )
    if len(schemes) > 1:
        raise CheckpointError(
            f"{module!r} is in {len(schemes)} groups of quantization_config, and runtimes differ in which "
            f"holds; {USE}"
        )
    (scheme,) = schemes
    assert scheme is not None
    return scheme


def _ranks(module: str, targets: tuple[str, ...]) -> list[int]:
    """Return how each target that fits a module does: 0 by its name, 1 by an expression, 2 by its class."""
    kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
    found = []
    for target in targets:
        if target in (module, kind):
            found.append(0 if target == module else 2)
        elif target.startswith(_REGEX) and _matches(target.removeprefix(_REGEX), module):
            found.append(1)
    return found


def _matches(expression: str, module: str) -> bool:
    try:
        return re.match(expression, module) is not None
    except re.error as error:
        raise CheckpointError(
            f"quantization_config has expression {expression!r} ({error}); {USE}"
        ) from error


def _integer_weight(scheme: Scheme, parts: Parts, dtype: torch.dtype | None) -> Stored:
    """Return a weight of signed integers, in words or in bytes."""
    shape = _integer_shape(scheme, parts)
    grid = tiles_of(shape, scheme.tile)
    scales, zeros = parts.tiles("weight_scale", grid), _zeros(scheme, parts, grid)
    codes, columns = _codes(scheme, parts, shape), _columns(scheme, parts, shape[1])
    return dequantised(
        shape,
        float_type(dtype, parts.need("weight_scale")),
        lambda: Grid(codes(), scales(), columns(), scheme.tile[0] or shape[0], zeros()),
    )


def _integer_shape(scheme: Scheme, parts: Parts) -> tuple[int, int]:
    if not scheme.packed:
        outputs, inputs = parts.matrix("weight", torch.int8).shape
        return outputs, inputs
    outputs, words = parts.matrix("weight_packed", torch.int32).shape
    shape = parts.need("weight_shape", torch.int64, torch.int32)
    sizes: list[int] = shape.whole().tolist() if shape.shape == (2,) else []
    if len(sizes) != 2 or (outputs, words) != (sizes[0], -(-sizes[1] * scheme.bits // 32)):
        raise parts.refused("weight_packed", f"has shape {[outputs, words]}, which is not that of {sizes}")
    return sizes[0], sizes[1]


def _codes(
    scheme: Scheme, parts: Parts, shape: tuple[int, int]
) -> Callable[[], Callable[[int, int], Tensor]]:
    """Return how to open a weight's codes."""

    def in_bytes() -> Callable[[int, int], Tensor]:
        held = parts.need("weight").whole()
        return lambda first, last: held[first:last]

    def in_words() -> Callable[[int, int], Tensor]:
        held = parts.need("weight_packed").whole()
        return lambda first, last: _signed(unpack(held[first:last], scheme.bits)[:, : shape[1]], scheme.bits)

    return in_words if scheme.packed else in_bytes


def _signed(numbers: Tensor, bits: int) -> Tensor:
    return numbers.short() - (1 << (bits - 1))


def _zeros(scheme: Scheme, parts: Parts, grid: tuple[int, int]) -> Callable[[], Tensor | None]:
    """Return how to read the codes of zero: int8, or where weights are packed in words along the outputs."""
    if "weight_zero_point" not in parts.tensors and scheme.symmetric:
        return lambda: None
    held = parts.need("weight_zero_point", torch.int8, torch.int32)
    if held.dtype == torch.int32:
        words = parts.tiles("weight_zero_point", (-(-grid[0] * scheme.bits // 32), grid[1]), torch.int32)
        return lambda: _checked(
            scheme, parts, _signed(unpack(words().T, scheme.bits).T[: grid[0]], scheme.bits)
        )
    plain = parts.tiles("weight_zero_point", grid, torch.int8)
    return lambda: _checked(scheme, parts, plain())


def _checked(scheme: Scheme, parts: Parts, zeros: Tensor) -> Tensor:
    if scheme.symmetric and bool(zeros.any()):
        raise parts.refused("weight_zero_point", "is not zero, but its weight is said to be symmetric")
    return zeros


def _columns(scheme: Scheme, parts: Parts, inputs: int) -> Callable[[], Tensor]:
    """Return how to read which group each input is in: those of `weight_g_idx` where inputs are reordered."""
    width = scheme.tile[1]
    if "weight_g_idx" not in parts.tensors and not scheme.reordered:
        return lambda: columns_of(inputs, width)
    order = parts.need("weight_g_idx", torch.int32, torch.int64)

    def read() -> Tensor:
        plain, columns = columns_of(inputs, width), order.whole().long()
        if bool((columns == -1).all()):  # as it begins, where nothing is reordered
            return plain
        if columns.shape != plain.shape or not torch.equal(columns.sort()[0], plain):
            raise parts.refused("weight_g_idx", "does not divide the inputs into groups of one size")
        return columns

    return read
