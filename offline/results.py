"""What a run brings home while it goes on: each result an archive of its own, in parts that may come back."""

import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offline.parts import parts_in, split


@dataclass
class Results:
    """Packs folders into `store`, and copies to `home` what fits there; names in `order` come first.

    part_bytes: of the largest part; files, total_bytes: of all that may lie in `home`.
    """

    store: Path
    home: Path
    order: Sequence[str]
    part_bytes: int
    files: int
    total_bytes: int
    _packed: dict[str, float] = field(default_factory=dict)  # when the newest file of each name was written

    def pack(self, name: str, folder: Path, *others: Path) -> None:
        """Pack the files of `folder` and others as NAME.tar.xz in parts, where one is newer than before."""
        found = {path.name: path for path in (*others, *sorted(folder.iterdir()))}
        files = [path for path in found.values() if path.is_file() and not path.name.startswith(".")]
        newest = max((path.stat().st_mtime for path in files), default=0.0)
        if not files or newest == self._packed.get(name):
            return
        self.store.mkdir(parents=True, exist_ok=True)
        archive = self.store / f"{name}.tar.xz"
        try:
            with tarfile.open(archive, "w:xz", preset=1) as tar:
                for path in files:
                    tar.add(path, f"{name}/{path.name}")
        except FileNotFoundError:  # it is being replaced by a newer one, which is packed next time
            return
        split(archive, self.store, self.part_bytes)
        archive.unlink()
        self._packed[name] = newest

    def bring_home(self) -> list[str]:
        """Copy what fits; return the names of the parts that do not, which stay in `store`."""
        found, taken, left = parts_in(self.store) if self.store.exists() else {}, list[Path](), list[str]()
        for name in self.order:
            parts = found.get(f"{name}.tar.xz", [])
            together = [*taken, *parts]
            if len(together) > self.files or sum(path.stat().st_size for path in together) > self.total_bytes:
                left += [path.name for path in parts]
            else:
                taken = together
        names = {path.name for path in taken}
        for old in (path for paths in parts_in(self.home).values() for path in paths):
            if old.name not in names:
                old.unlink()
        for path in taken:
            _copy(path, self.home / path.name)
        return left


def _copy(source: Path, target: Path) -> None:
    """Copy a file that is newer, so that a whole one lies there at any time."""
    if target.exists() and target.stat().st_mtime == source.stat().st_mtime:
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.copy2(source, partial)
    partial.replace(target)
