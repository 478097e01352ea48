"""What `build` says of a bundle that it made."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poss_export.cli.printing import megabytes, print_facts
from poss_export.engine_spec import EngineEntry

if TYPE_CHECKING:
    from poss_export.manifest import Manifest


def print_bundle(folder: Path, manifest: "Manifest") -> None:
    """Print its size and how near its graphs are to PyTorch, then its quality and its engines."""
    from poss_export.cli.cards import choice_line, from_quantised, lossless, quality_rows

    figures = ", ".join(f"{name} {value:.1e}" for name, value in manifest.parity.items())
    click.echo(f"{folder}: {megabytes(sum(f.size for f in manifest.files.values()))}, parity {figures}")
    if told := from_quantised(manifest.target.dequantised):
        click.echo(f"dequantised: {told}")
    if choice := choice_line(manifest.calibration):
        click.echo(f"drafter: {choice}")
    if manifest.quality is not None:
        print_facts({**quality_rows(manifest.quality), "lossless": lossless(manifest)})
    for entry in manifest.engines:
        _print_engine(entry, manifest.files[entry.spec.file].size)


def _print_engine(entry: EngineEntry, size: int) -> None:
    kinds = Counter(entry.attention.values())
    attention = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "written out in the graph"
    click.echo(
        f"{entry.spec.file}: {megabytes(size)} in {entry.build_seconds:.1f} s, "
        f"peak memory {megabytes(entry.peak_memory)}, attention: {attention}"
    )
