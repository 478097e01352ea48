"""What `build` says of a bundle that it made."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poss_export.cli.printing import megabytes, print_facts
from poss_export.engine_spec import EngineEntry

if TYPE_CHECKING:
    from poss_export.manifest import Manifest


def print_bundle(folder: Path, manifest: "Manifest") -> None:
    """Print its size and how near its graphs are to PyTorch, then its quality and its engines."""
    figures = ", ".join(f"{name} {value:.1e}" for name, value in manifest.parity.items())
    click.echo(f"{folder}: {megabytes(sum(f.size for f in manifest.files.values()))}, parity {figures}")
    if manifest.quality is not None:
        print_facts(_quality_facts(manifest.quality))
    for entry in manifest.engines:
        _print_engine(entry, manifest.files[entry.spec.file].size)


def _quality_facts(quality: Mapping[str, Any]) -> dict[str, str]:
    """Return what quantising costs, beside the pair in floating point."""
    text, rounds, widths = quality["text"], quality["rounds"], quality.get("widths")
    facts = {
        "perplexity": f"{text['perplexity']:.3f}, in floating point {text['reference_perplexity']:.3f}",
        "divergence": f"{text['divergence']:.4f} nats a token",
        "agreement": f"{text['agreement']:.1%} of {text['tokens']} tokens",
    }
    if rounds:
        facts["tau"] = f"{rounds['tau']:.2f}, in floating point {rounds['reference_tau']:.2f}"
        facts["equal answers"] = f"{rounds['equal_answers']} of {rounds['prompts']}"
    if widths:
        least = widths["least_width"]
        in_chains = "no, only in chains (--top-k 1)" if least else "no"
        facts["width-independent"] = f"from {least} tokens a call on" if least else "no"
        facts["exact in trees"] = "yes" if widths["tree_exact"] else in_chains
    return facts


def _print_engine(entry: EngineEntry, size: int) -> None:
    kinds = Counter(entry.attention.values())
    attention = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "written out in the graph"
    click.echo(
        f"{entry.spec.file}: {megabytes(size)} in {entry.build_seconds:.1f} s, "
        f"peak memory {megabytes(entry.peak_memory)}, attention: {attention}"
    )
