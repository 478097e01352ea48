"""FP8: weights in 8-bit floating point, with a scale for each block, each output, or the whole weight."""

from functools import partial

import torch

from poss_export.targets.grids import Grid, Parts, Tile, columns_of, dequantised, listed, tiles_of
from poss_export.targets.quantised import CACHE, ROUNDED, Quantisation, float_type
from poss_export.targets.stated import Stated
from poss_export.targets.weights import FLOATS, Stored

CODE_TYPE = torch.float8_e4m3fn
_SCALES = ("weight_scale_inv", "weight_scale")  # both are multiplied by; the first is DeepSeek's name
_FLOATS = ("modules_to_not_convert", "ignored_layers")
_BLOCK = (128, 128)  # outputs and inputs, where DeepSeek's scales are and no size is stated


def read_fp8(stated: Stated) -> Quantisation:
    """Return how weights in blocks, or with one scale, are read; activations are not rounded."""
    tile = stated.block("weight_block_size")
    stated.among("fmt", ("e4m3",), "e4m3")
    stated.among("scale_fmt", ("float", "ue8m0"), "float")
    static = stated.among("activation_scheme", ("dynamic", "static"), "dynamic") == "static"
    floats, cached = stated.names(*_FLOATS), bool(stated.get("kv_cache_scheme"))
    stated.only(
        *("quant_method", "weight_block_size", "fmt", "scale_fmt", "activation_scheme", "dequantize"),
        *(*_FLOATS, "kv_cache_scheme", "expert_dtype"),  # there are no experts
    )
    return Quantisation(
        "fp8" if tile is None else f"fp8 (blocks of {tile[0]} x {tile[1]})",
        marks=frozenset(_SCALES),
        spent=frozenset({"weight", *_SCALES}),
        read=partial(_block_weight, tile, floats),
        unread=frozenset({"activation_scale", "input_scale"} if static else ())
        | (CACHE if cached else set()),
        doubts=(ROUNDED,),
    )


def _block_weight(
    tile: Tile | None, floats: tuple[str, ...], parts: Parts, dtype: torch.dtype | None
) -> Stored:
    name = parts.only(*_SCALES)
    if tile is None:  # transformers fills its blocks in; others mean one scale
        blocks = name == _SCALES[0] and len(parts.need(name).shape) == 2
        tile = _BLOCK if blocks else (None, None)
    return weight(parts, name, tile, floats, dtype)


def read_fbgemm(stated: Stated) -> Quantisation:
    """Return how weights with a scale for each output are read; activations are not rounded."""
    floats = stated.names("modules_to_not_convert")
    stated.only("quant_method", "activation_scale_ub", "modules_to_not_convert")
    return Quantisation(
        "fbgemm_fp8 (a scale an output)",
        marks=frozenset({"weight_scale"}),
        spent=frozenset({"weight", "weight_scale"}),
        read=lambda parts, dtype: weight(parts, "weight_scale", (1, None), floats, dtype),
        unread=frozenset({"input_scale_ub"}),
        doubts=(ROUNDED,),
    )


def weight(
    parts: Parts, scale: str, tile: Tile, floats: tuple[str, ...], dtype: torch.dtype | None
) -> Stored:
    """Return an FP8 weight with a scale, by its name, for each tile of so many outputs and inputs.

    Raises:
        CheckpointError: it is not quantised so, or is one of `floats`, which are not quantised.
    """
    if listed(parts.module, floats):
        raise parts.refused("weight", "is quantised, but is listed among the modules that are not")
    codes = parts.matrix("weight", CODE_TYPE)
    shape = codes.shape[0], codes.shape[1]
    scales = parts.tiles(scale, tiles_of(shape, tile), *FLOATS, torch.float8_e8m0fnu)

    def open_grid() -> Grid:
        held = codes.whole()
        return Grid(
            codes=lambda first, last: held[first:last],
            scales=scales().float(),
            columns=columns_of(shape[1], tile[1]),
            height=tile[0] or shape[0],
        )

    return dequantised(shape, float_type(dtype, parts.need(scale)), open_grid)
