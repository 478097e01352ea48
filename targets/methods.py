"""How weights of Hugging Face folders are quantised, by the `quant_method` of their config.json."""

from collections.abc import Callable, Mapping
from reprlib import repr as shortened
from typing import Any

import torch

from poss_export.errors import CheckpointError
from poss_export.targets.compressed_tensors import read_compressed
from poss_export.targets.float8 import read_fbgemm, read_fp8
from poss_export.targets.grids import USE
from poss_export.targets.quantised import Quantisation
from poss_export.targets.small_integers import read_awq, read_gptq
from poss_export.targets.stated import Stated
from poss_export.targets.weights import FLOATS

_METHODS: dict[str, Callable[[Stated], Quantisation]] = {
    "awq": read_awq,
    "compressed-tensors": read_compressed,
    "fbgemm_fp8": read_fbgemm,
    "fp8": read_fp8,
    "gptq": read_gptq,
}
_FIELDS = ("quantization_config", "compression_config")  # the second in early files of compressed-tensors


def read_quantisation(stated: Mapping[str, Any]) -> Quantisation | None:
    """Return how the weights are quantised of which config.json states this; None where they are not.

    Raises:
        CheckpointError: in a way that this version does not read, or not as it should be read.
    """
    if (method := stated_method(stated)) is None:
        return None
    values = _stated(stated)
    if method not in _METHODS or not isinstance(values, Mapping):
        raise CheckpointError(
            f"quantised weights ({shortened(method)}) are not supported; this version reads "
            f"{', '.join(_METHODS)}: {USE}"
        )
    return _METHODS[method](Stated("quantization_config", values))


def stated_method(stated: Mapping[str, Any]) -> str | None:
    """Return by which method weights are quantised of which config.json states this, if they are."""
    if (values := _stated(stated)) is None:
        return None
    if not isinstance(values, Mapping):
        return str(values)
    if values.get("load_in_4bit") or values.get("load_in_8bit"):  # early files name no method
        return "bitsandbytes"
    return str(values.get("quant_method"))


def _stated(stated: Mapping[str, Any]) -> Any:
    """Return what is stated of quantisation; an empty object states nothing."""
    return next((value for name in _FIELDS if (value := stated.get(name)) not in (None, {})), None)


def stated_type(stated: Mapping[str, Any]) -> torch.dtype | None:
    """Return the type of floats that config.json states, if it does."""
    name = stated.get("dtype") or stated.get("torch_dtype")
    return next(
        (dtype for dtype in FLOATS if f"{dtype}" == f"torch.{str(name).removeprefix('torch.')}"), None
    )
