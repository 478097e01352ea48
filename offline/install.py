"""Make an environment from packs, on the machine without network; needs nothing but Python.

    python3 -m offline.install STAGE -o FOLDER

FOLDER/bin/python then has what was packed and what the machine's Python has. A distribution of the machine
whose modules were packed is left out whole: `onnxruntime` and `onnxruntime-gpu` must not meet.
"""

import argparse
import shutil
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from offline.parts import PartsError, join

SITE, DRAFTERS, DIALOGUES, HELD_APART = "site", "drafters", "dialogues", "held-apart"


def install(stage: Path, folder: Path) -> Path:
    """Unpack all packs whose parts are in `stage` into the new environment `folder`; return its Python."""
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for archive in join(stage, Path(name)):
            unpack(archive, folder, packages)
    add_machine(packages, [Path(path) for path in sys.path if Path(path).name.endswith("-packages")])
    return folder / "bin" / "python"


def unpack(archive: Path, folder: Path, packages: Path) -> None:
    """Put the packages of a pack into `packages`, everything else into `folder`."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    for path in (folder / SITE).iterdir():
        if path.name != "bin" and not (packages / path.name).exists():
            path.rename(packages / path.name)
    shutil.rmtree(folder / SITE)


def add_machine(packages: Path, sites: Iterable[Path]) -> None:
    """Link what is in the machine's `sites` into `packages`, but for what was packed."""
    packed = {path.name for path in packages.iterdir()}
    for site in sites:
        hidden = {
            top
            for distribution in distributions(path=[str(site)])
            if packed & (tops := _tops(distribution))
            for top in tops
        }
        for path in site.iterdir():
            if path.name not in hidden and not (packages / path.name).exists():
                (packages / path.name).symlink_to(path)


def _tops(distribution: Distribution) -> set[str]:
    """Return the entries of its site folder that a distribution owns."""
    return {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m offline.install", description=__doc__.partition("\n")[0])
    parser.add_argument("stage", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given, start = parser.parse_args(arguments), time.monotonic()
    try:
        python = install(given.stage, given.output)
    except (PartsError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{python} is ready after {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
