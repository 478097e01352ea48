"""Weights that are still where they are stored: read when they are used, a block of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types that need no scale
_TILE = 128  # rows that are transposed together
_BLOCK = 1 << 24  # values that are read at a time: what a conversion has in memory beside its result


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, or one in memory: shape and type are known, its rows are read when asked for.

    read: returns the rows from the first number up to the second, in this type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]

    def whole(self) -> Tensor:
        """Return all of it."""
        return self.read(0, self.shape[0]) if self.shape else self.read(0, 1)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first row of each block, and the one behind its last."""
        rows = self.shape[0]
        step = max(1, _BLOCK // max(1, prod(self.shape[1:])))
        for first in range(0, rows, step):
            yield first, min(first + step, rows)

    def part(self, first: int, last: int) -> "Stored":
        """Return some of its rows as a tensor."""
        shape = (last - first, *self.shape[1:])
        return Stored(shape, self.dtype, lambda start, end: self.read(first + start, first + end))

    def item(self, index: int) -> "Stored":
        """Return one of its rows, which are tensors, as a tensor."""
        return Stored(
            self.shape[1:], self.dtype, lambda first, last: self.read(index, index + 1)[0][first:last]
        )

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Stored":
        """Return it with a function of its rows, which changes their values alone, applied in float32."""
        return Stored(self.shape, torch.float32, lambda first, last: function(self.read(first, last).float()))

    def in_order(self, order: Tensor) -> "Stored":
        """Return it with the rows of each block of `len(order)` rows in another order."""
        size = len(order)

        def read(first: int, last: int) -> Tensor:
            # Rows of one block come from all over it.
            start, end = first - first % size, last + -last % size
            rows: Tensor = self.read(start, end).unflatten(0, (-1, size))[:, order].flatten(0, 1)
            return rows[first - start : last - start]

        return Stored(self.shape, self.dtype, read)


def beside(parts: Sequence[Stored]) -> Stored:
    """Return matrices of the same rows joined along their columns."""
    columns = sum(part.shape[1] for part in parts)
    return Stored(
        (parts[0].shape[0], columns),
        parts[0].dtype,
        lambda first, last: torch.cat([p.read(first, last) for p in parts], dim=1),
    )


@dataclass(frozen=True)
class Weight:
    """One weight of a module: stored tensors joined along their rows, transposed where it is `[in, out]`."""

    parts: tuple[Stored, ...]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])
        return shape[::-1] if self.transposed else shape

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight in a type; no more than a block of it is in memory twice."""
        whole, start = torch.empty(self.shape, dtype=dtype), 0
        for part in self.parts:
            for first, last in part.blocks():
                for tile in part.read(first, last).split(_TILE):
                    end = start + len(tile)
                    if self.transposed:  # in tiles that a processor's cache holds: several times faster
                        whole[:, start:end] = tile.to(dtype).T.contiguous()
                    else:
                        whole[start:end] = tile
                    start = end
        return whole

    def row_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of a table in float32, in blocks: the number of a block's first, and the block."""
        (table,) = self.parts
        for first, last in table.blocks():
            yield first, table.read(first, last).float()

    def rows(self, ids: Tensor) -> Tensor:
        """Return rows `ids` `[...]` of a table `[rows, columns]` in float32, `[..., columns]`."""
        (table,), wanted = self.parts, ids.flatten()
        found = torch.empty(len(wanted), *self.shape[1:])
        for first, last in table.blocks():
            here = (wanted >= first) & (wanted < last)
            if here.any():
                found[here] = table.read(first, last)[wanted[here] - first].float()
        return found.view(*ids.shape, *self.shape[1:])


def in_memory(tensor: Tensor) -> Weight:
    """Return a tensor as a weight that is stored in memory."""
    return Weight((Stored(tuple(tensor.shape), tensor.dtype, lambda first, last: tensor[first:last]),))


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Return the weights of a module that are in memory, by their names in its state dict."""
    state = module.state_dict()
    return {name: in_memory(tensor) for name, tensor in state.items() if not tensor.is_meta}
