"""Quantised weights, whatever their format: codes in a grid of scales, dequantised a few rows at a time."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from poss_export.errors import CheckpointError
from poss_export.targets.weights import FLOATS, Stored

USE = "use the original checkpoint"
_AT_ONCE = 1 << 20  # values that are dequantised together: small beside any weight
_WORD = 32  # bits

Tile = tuple[int | None, int | None]  # outputs and inputs that share a scale; None: all


@dataclass(frozen=True)
class Grid:
    """A quantised weight `[outputs, inputs]`, opened; a value is (code - zero) * scale.

    codes: returns the codes of the outputs from the first number up to the second, `[rows, inputs]`.
    scales, zeros: a number for each tile of the weight, `[tiles of outputs, tiles of inputs]`.
    height: outputs of a tile. columns: which tile each input is in, `[inputs]` int64.
    """

    codes: Callable[[int, int], Tensor]
    scales: Tensor
    columns: Tensor
    height: int = 1
    zeros: Tensor | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """Return the values of outputs, `[rows, inputs]` float32."""
        tiles = torch.arange(first, last) // self.height
        values = self.codes(first, last).float()
        if self.zeros is not None:
            values = values - self.zeros[tiles].float()[:, self.columns]
        return values * self.scales[tiles].float()[:, self.columns]


def dequantised(shape: tuple[int, int], dtype: torch.dtype, open_grid: Callable[[], Grid]) -> Stored:
    """Return a weight as a tensor that is dequantised when it is read, its values rounded to `dtype`."""

    def read(first: int, last: int) -> Tensor:
        rows, grid = torch.empty(last - first, shape[1], dtype=dtype), open_grid()
        for part in torch.arange(first, last).split(max(1, _AT_ONCE // shape[1])):
            start, end = int(part[0]), int(part[-1]) + 1
            rows[start - first : end - first] = grid.rows(start, end)
        return rows

    return Stored(shape, dtype, read)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Return the numbers that rows of words hold, from their lowest bits on.

    Args:
        words: `[rows, words]` int32; numbers of 3, 5, 6 or 7 bits may lie across two words.
        bits: of a number, 1 to 8.

    Returns:
        `[rows, words * 32 // bits]` uint8.
    """
    period = bits // gcd(bits, _WORD)  # words after which a number begins with a word again
    periods = words.unflatten(1, (-1, period))
    numbers = torch.empty(*periods.shape[:2], period * _WORD // bits, dtype=torch.uint8)
    for index in range(numbers.shape[-1]):
        word, offset = divmod(index * bits, _WORD)
        number = periods[..., word] >> offset
        if (beyond := offset + bits - _WORD) > 0:
            below = bits - beyond
            number = number & ((1 << below) - 1) | periods[..., word + 1] << below
        numbers[..., index] = number & ((1 << bits) - 1)
    return numbers.flatten(1)


@dataclass(frozen=True)
class Parts:
    """What a checkpoint stores of one module, by the last part of the tensors' names."""

    module: str
    tensors: Mapping[str, Stored]

    def need(self, name: str, *dtypes: torch.dtype) -> Stored:
        """Return a tensor; raises CheckpointError where it is missing or of another type than expected."""
        if name not in self.tensors:
            raise CheckpointError(
                f"tensor '{self.module}.{name}' is missing, which its quantised weight needs: the checkpoint "
                "is incomplete; fetch it again"
            )
        tensor = self.tensors[name]
        if dtypes and tensor.dtype not in dtypes:
            raise self.refused(name, f"is {tensor.dtype}; expected {' or '.join(map(str, dtypes))}")
        return tensor

    def only(self, *names: str) -> str:
        """Return which of several tensors is there; the first of them where none is.

        Raises:
            CheckpointError: more than one is.
        """
        found = [name for name in names if name in self.tensors] or [names[0]]
        if len(found) > 1:
            raise self.refused(found[0], f"is there, and {found[1]} too")
        return found[0]

    def matrix(self, name: str, *dtypes: torch.dtype) -> Stored:
        """Return a tensor of two dimensions; raises as `need`."""
        tensor = self.need(name, *dtypes)
        if len(tensor.shape) != 2:
            raise self.refused(name, f"has shape {list(tensor.shape)}; expected a matrix")
        return tensor

    def tiles(self, name: str, shape: tuple[int, int], *dtypes: torch.dtype) -> Callable[[], Tensor]:
        """Return how to read a tensor with a number for each tile; axes of one tile may be left out.

        Raises:
            CheckpointError: it is missing, or of another shape or type than expected.
        """
        tensor = self.need(name, *(dtypes or FLOATS))
        if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            raise self.refused(name, f"has shape {list(tensor.shape)}; expected {list(shape)}")
        return lambda: tensor.whole().reshape(shape)

    def refused(self, name: str, why: str) -> CheckpointError:
        """Return the error that a tensor is not what its format says."""
        return CheckpointError(
            f"tensor '{self.module}.{name}' {why}: it is not as its quantization_config says; {USE}"
        )


def tiles_of(shape: tuple[int, int], tile: Tile) -> tuple[int, int]:
    """Return how many tiles cover a weight, by outputs and by inputs."""
    outputs, inputs = (-(-size // (part or size)) for size, part in zip(shape, tile, strict=True))
    return outputs, inputs


def columns_of(inputs: int, width: int | None) -> Tensor:
    """Return which tile each input is in where they follow each other, `[inputs]` int64."""
    return torch.arange(inputs) // (width or inputs)


def listed(module: str, names: Collection[str]) -> bool:
    """Whether a list of modules has a module, or one that it is part of, by its name or the end of it."""
    return any(f".{name}." in f".{module}." for name in names)
