"""The CUDA driver, by ctypes: the few calls that sessions need, no other library.

Every function raises BackendError with one message where there is no driver or no GPU.
"""

import ctypes
from typing import Any

from poss_export.errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


def call(function: str, *arguments: Any) -> None:
    """Call the driver's `function`; raises BackendError where it fails."""
    if status := getattr(_library(), function)(*arguments):
        raise BackendError(f"the CUDA driver's {function} failed with status {status}; see nvidia-smi")


def has_driver() -> bool:
    """Whether the CUDA driver is installed."""
    try:
        _library()
    except BackendError:
        return False
    return True


def device_capability() -> str:
    """Return the compute capability of device 0, as "8.9"."""
    call("cuInit", 0)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, 0)
        numbers.append(str(number.value))
    return ".".join(numbers)


def _library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(
            "no CUDA driver on this machine (libcuda.so.1): TensorRT engines run on an NVIDIA GPU; "
            "use the ONNX Runtime backend here"
        ) from error
