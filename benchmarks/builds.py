"""What engines cost to build: seconds, peak memory and size by profiles, beside the estimate of a dry run.

    python -m benchmarks.builds BUNDLE --compute-capability 8.9

BUNDLE has static caches. Its target is built under several sets of profiles, into a folder that is removed.
"""

import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from poss_export.bundling.engine_request import request_engines
from poss_export.bundling.sizes import engine_bytes
from poss_export.engine_spec import EngineOptions, EngineSpec, Profile, target_profiles
from poss_export.errors import BackendError
from poss_export.exporters.engine_build import build_engine
from poss_export.manifest import TARGET_GRAPH, Manifest, read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.loop import PREFILL_CHUNK


def profile_sets(manifest: Manifest) -> dict[str, tuple[Profile, ...]]:
    """Return what is compared, by name; `build` takes the second."""
    chunk = min(PREFILL_CHUNK, manifest.capacity)
    width = 12 if manifest.drafter is None else manifest.drafter.tree.width
    (open_one,) = target_profiles(chunk, None)
    fixed = {size: target_profiles(chunk, size)[1] for size in (1, 2, width)}
    return {
        f"up to {chunk}": (open_one,),
        f"up to {chunk}, {width}": (open_one, fixed[width]),
        f"up to {chunk}, 1, {width}": (open_one, fixed[1], fixed[width]),
        f"up to {chunk}, 2, {width}": (open_one, fixed[2], fixed[width]),
        f"up to {chunk}, up to {chunk}": (open_one, open_one),
    }


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--compute-capability", "capabilities", multiple=True, required=True)
def main(bundle: Path, capabilities: tuple[str, ...]) -> None:
    """Build and print."""
    manifest = read_manifest(bundle)
    request = request_engines("tensorrt-rtx", EngineOptions(capabilities))
    weights = manifest.files[f"{TARGET_GRAPH}.data"].size
    columns = ("profiles", "seconds", "peak MB", "of weights", "MB", "estimated peak MB", "estimated MB")
    table = Table(*columns, box=None, title=f"target, {manifest.precision}, weights {weights / 1e6:.0f} MB")
    for name, profiles in profile_sets(manifest).items():
        spec = EngineSpec(
            graph="target",
            flavour=request.flavour,
            version=request.version,
            precision=manifest.precision,
            capacity=manifest.capacity,
            profiles=profiles,
            options=request.options,
            graph_sha256=manifest.graph_sha256("target"),
        )
        planned = engine_bytes("target", weights, len(profiles), manifest.precision)
        try:
            with tempfile.TemporaryDirectory() as folder:
                engine = Path(folder) / spec.file
                entry = build_engine(
                    bundle / TARGET_GRAPH,
                    contracts_of(manifest)["target"],
                    spec,
                    engine,
                    timing_cache=None,
                    progress=lambda *_: None,
                )
                size = engine.stat().st_size
        except BackendError as error:
            table.add_row(name, f"refused: {str(error)[:60]}")
            continue
        took = (f"{entry.build_seconds:.1f}", f"{entry.peak_memory / 1e6:.0f}")
        share = f"{entry.peak_memory / weights:.1f}"
        estimates = (f"{planned['peak_memory'] / 1e6:.0f}", f"{planned['engine'] / 1e6:.0f}")
        table.add_row(name, *took, share, f"{size / 1e6:.0f}", *estimates)
    Console().print(table)


if __name__ == "__main__":
    environment.run(main)
