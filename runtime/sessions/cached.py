"""What every session with caches for one sequence does alike, whatever engine runs it."""

from collections.abc import Sequence

import numpy as np

from poss_export.errors import InputError
from poss_export.runtime.sessions.base import Ints
from poss_export.runtime.sessions.caches import Rows


class CachedSession:
    """Counts the rows in its caches and keeps those of accepted paths; a subclass sets `_caches`."""

    _caches: Rows

    def __init__(self, name: str, capacity: int) -> None:
        """Start empty; `name` is the file that errors tell."""
        self.name, self.capacity = name, capacity
        self.lengths: Ints = np.zeros(1, dtype=np.int64)
        self.engine_seconds = 0.0
        self._written = 0  # cache rows that may differ from zero

    def reset(self) -> None:
        """Empty the caches."""
        self._caches.clear(self._written)
        self._written = self.lengths[0] = 0
        self.engine_seconds = 0.0

    def _write(self, new_rows: int, filling: int = 0) -> None:
        """Note that a call writes `new_rows` cache rows after the committed ones, and `filling` more.

        Raises InputError where they do not fit: an engine may write beyond its cache without a word. For what
        fills up a call the session has room beside its capacity.
        """
        length = int(self.lengths[0])
        if length + new_rows > self.capacity:
            raise InputError(
                f"{self.name}: {new_rows} tokens after {length} do not fit the capacity {self.capacity}"
            )
        self._written = max(self._written, length + new_rows + filling)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep these rows of the last call, in this order, and drop its others."""
        (path,) = (np.asarray(path, dtype=np.int64) for path in paths)
        length = int(self.lengths[0])
        moved = int((path == np.arange(len(path))).sum())  # ascending: those in place come first
        if moved < len(path):
            self._caches.move(length + path[moved:], length + moved)
        self.lengths[0] += len(path)
