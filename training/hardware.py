"""What training computes on."""

import ctypes

import torch

from poss_export.machine import check_threads

_SHAPES = 32  # rows and columns of matrices are rounded up to multiples of this
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def training_device() -> torch.device:
    """Return the CUDA device, if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def use_threads(threads: int | None) -> None:
    """Compute on so many CPU threads; None: as many as PyTorch takes.

    Raises:
        InputError: so many cannot help.
    """
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)


def rounded(count: int) -> int:
    """Return how many rows to multiply for `count`: a CPU compiles code for each number that it meets."""
    return -(-count // _SHAPES) * _SHAPES


def keep_memory() -> None:
    """Let glibc keep large blocks that are freed: new ones cost a page fault every 4 KiB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 1 << 26)
