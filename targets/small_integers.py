"""GPTQ and AWQ: integers of a few bits in words of 32, `[inputs, outputs]`, in groups of inputs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from poss_export.errors import CheckpointError
from poss_export.targets.grids import USE, Grid, Parts, columns_of, dequantised, listed, tiles_of, unpack
from poss_export.targets.quantised import Quantisation, float_type
from poss_export.targets.stated import Stated
from poss_export.targets.weights import Stored

# What says how weights were found, or how a runtime is to read them, and changes none: of AutoGPTQ,
# transformers and GPTQModel, of AutoRound, and of AutoAWQ.
_SAID = (
    *("quant_method", "dataset", "tokenizer", "damp_percent", "damp_auto_increment", "true_sequential"),
    *("static_groups", "act_group_aware", "mse", "lm_head", "meta", "quantizer", "method", "v2", "v2_alpha"),
    *("model_name_or_path", "model_file_base_name", "model_seqlen", "block_name_to_quantize"),
    *("module_name_preceding_first_block", "modules_in_block_to_quantize", "batch_size", "pad_token_id"),
    *("max_input_length", "cache_block_outputs", "backend", "exllama_config", "use_exllama"),
    *("disable_exllama", "use_cuda_fp16", "offload_to_disk", "offload_to_disk_path"),
    *("amp", "autoround_version", "enable_minmax_tuning", "enable_norm_bias_tuning"),
    *("enable_quanted_input", "gradient_accumulate_steps", "iters", "low_gpu_mem_usage", "lr", "minmax_lr"),
    *("nsamples", "quant_block_list", "scale_dtype", "seqlen", "to_quant_block_names"),
    *("do_fuse", "modules_to_fuse", "fuse_max_seq_len"),
)
_READ = ("bits", "group_size", "desc_act", "sym", "checkpoint_format", "format", "pack_dtype", "data_type")
_AWQ_BITS = 4
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the number of each of eight outputs is


def read_gptq(stated: Stated) -> Quantisation:
    """Return how weights of GPTQ are read: in 2, 3, 4 or 8 bits, in the order of inputs or of `g_idx`."""
    bits = stated.among("bits", (2, 3, 4, 8))
    width = stated.width("group_size", 128)
    ordered = stated.among("desc_act", (True, False), False)
    symmetric = stated.among("sym", (True, False, None))
    layout = stated.among(stated.first("checkpoint_format", "format"), ("gptq", "gptq_v2"), "gptq")
    _check_words(stated)
    stated.only(
        *(*_SAID, *_READ),
        dynamic="it quantises some layers in another way, which is not read",
        rotation="its rotations are not computed here",
        adapter="its adapters are not computed here",
    )
    zero = partial(_gptq_zeros, bits, layout == "gptq", symmetric is True)
    order = ", inputs reordered" if ordered else ""
    return Quantisation(
        f"{layout} ({bits} bits, {_groups(width)}{order})",
        marks=frozenset({"qweight"}),
        spent=frozenset({"qweight", "qzeros", "scales", "g_idx"}),
        read=partial(_gptq_weight, bits, width, ordered, zero),
    )


def _gptq_weight(
    bits: int,
    width: int | None,
    ordered: bool,
    zeros_of: Callable[[Parts, Tensor], Tensor],
    parts: Parts,
    dtype: torch.dtype | None,
) -> Stored:
    packed = parts.matrix("qweight", torch.int32)
    words, outputs = packed.shape
    if words * 32 % bits or outputs * bits % 32:
        raise parts.refused("qweight", f"has shape {list(packed.shape)}, which is no whole of {bits} bits")
    inputs = words * 32 // bits
    groups = tiles_of((outputs, inputs), (1, width))[1]
    scales = parts.tiles("scales", (groups, outputs))
    zeros = parts.tiles("qzeros", (groups, outputs * bits // 32), torch.int32)
    if ordered:
        parts.need("g_idx")

    def open_grid() -> Grid:
        columns, held = columns_of(inputs, width), packed.whole()
        if "g_idx" in parts.tensors:
            columns = _gptq_order(parts, columns, ordered)
        return Grid(
            codes=lambda first, last: unpack(held[:, first:last].T, bits),
            scales=scales().T,
            columns=columns,
            zeros=zeros_of(parts, zeros()).T,
        )

    return dequantised((outputs, inputs), float_type(dtype, parts.need("scales")), open_grid)


def _gptq_order(parts: Parts, plain: Tensor, ordered: bool) -> Tensor:
    """Return the group of each input as `g_idx` has it, which must be `plain` where none is to be."""
    order = parts.need("g_idx", torch.int32, torch.int64).whole().long()
    if order.shape != plain.shape or int(order.min()) < 0 or order.max() > plain.max():
        raise parts.refused("g_idx", f"does not name one of {int(plain.max()) + 1} groups for each input")
    if not ordered and not torch.equal(order, plain):
        raise parts.refused("g_idx", "reorders the inputs, but desc_act is false")
    return order


def _gptq_zeros(bits: int, less_one: bool, symmetric: bool, parts: Parts, words: Tensor) -> Tensor:
    """Return the codes of zero, `[groups, outputs]`; the first format stores them less one."""
    zeros = unpack(words, bits).short() + less_one
    if symmetric and bool((zeros != 1 << (bits - 1)).any()):
        raise parts.refused("qzeros", "holds other zeros than those of symmetric weights, but sym is true")
    if int(zeros.max()) == 1 << bits:
        raise CheckpointError(
            f"tensor '{parts.module}.qzeros' has a zero of {(1 << bits) - 1}, which is one less than it "
            f"should be: runtimes read it as 0 or as {1 << bits}, and nothing says which is right; {USE}"
        )
    return zeros


def read_awq(stated: Stated) -> Quantisation:
    """Return how weights of AWQ are read: in 4 bits, in the layout of its GEMM kernel."""
    bits = stated.among("bits", (_AWQ_BITS,), _AWQ_BITS)
    width = stated.width("group_size", 128)
    stated.among(stated.first("version", "checkpoint_format", "format"), ("gemm",), "gemm")
    stated.among("zero_point", (True,), True, why="runtimes differ in weights without zeros")
    stated.among("desc_act", (False,), False)
    _check_words(stated)
    floats = stated.names("modules_to_not_convert")
    stated.only(*_SAID, *_READ, "version", "zero_point", "modules_to_not_convert")
    return Quantisation(
        f"awq ({bits} bits, {_groups(width)})",
        marks=frozenset({"qweight"}),
        spent=frozenset({"qweight", "qzeros", "scales"}),
        read=partial(_awq_weight, width, floats),
    )


def _awq_weight(
    width: int | None, floats: tuple[str, ...], parts: Parts, dtype: torch.dtype | None
) -> Stored:
    if listed(parts.module, floats):
        raise parts.refused("qweight", "is quantised, but is listed in modules_to_not_convert")
    packed = parts.matrix("qweight", torch.int32)
    inputs, words = packed.shape
    outputs = words * len(_AWQ_PLACES)
    groups = tiles_of((outputs, inputs), (1, width))[1]
    scales = parts.tiles("scales", (groups, outputs))
    zeros = parts.tiles("qzeros", (groups, words), torch.int32)

    def open_grid() -> Grid:
        held = packed.whole()

        def codes(first: int, last: int) -> Tensor:
            start = first // len(_AWQ_PLACES)  # the word of the first output
            some = _awq_numbers(held[:, start : -(-last // len(_AWQ_PLACES))]).T
            return some[first - start * len(_AWQ_PLACES) :][: last - first]

        return Grid(codes, scales().T, columns_of(inputs, width), zeros=_awq_numbers(zeros()).T)

    return dequantised((outputs, inputs), float_type(dtype, parts.need("scales")), open_grid)


def _awq_numbers(words: Tensor) -> Tensor:
    """Return the numbers of the outputs that words `[rows, words]` hold, `[rows, outputs]`."""
    numbers: Tensor = unpack(words, _AWQ_BITS).unflatten(1, (-1, len(_AWQ_PLACES)))
    return numbers[..., list(_AWQ_PLACES)].flatten(1)


def _check_words(stated: Stated) -> None:
    stated.among("pack_dtype", ("int32",), "int32")
    stated.among("data_type", ("int",), "int")


def _groups(width: int | None) -> str:
    return "one group" if width is None else f"groups of {width}"
