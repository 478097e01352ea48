"""What engines cost to build by widths, beside the estimate of a dry run, and what they take on a device.

    python -m benchmarks.builds BUNDLE --compute-capability 8.9

BUNDLE has static caches. Its target is built for several sets of widths, into a folder that is removed. With
`--device-memory` in fp16 or bf16, once more for what TensorRT-RTX says that it will take on a device: its
weights, and what the open profile and the largest of the fixed ones work in.
"""

import importlib
import re
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from poss_export.bundling.engine_request import EngineRequest, request_engines
from poss_export.bundling.sizes import engine_bytes
from poss_export.engine_spec import MODULES, EngineOptions, EngineSpec, ladder_of, target_profiles
from poss_export.errors import BackendError, InputError
from poss_export.exporters.engine_build import build_engine, shapes_of
from poss_export.exporters.engine_worker import listener
from poss_export.manifest import TARGET_GRAPH, Manifest, read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.base import PREFILL_CHUNK

COLUMNS = ("widths", "seconds", "peak MB", "of weights", "MB", "estimated peak MB", "estimated MB")
DEVICE_COLUMNS = ("weights MB", "open MB", "fixed MB")


def width_sets(tree_width: int) -> tuple[tuple[int, ...], ...]:
    """Return what is compared: the ladder that `build` takes, the tree's width, none, and 1 in place of 2."""
    ladder = ladder_of(tree_width)
    return ladder, (tree_width,), (), (1, *ladder[1:])


def make_spec(manifest: Manifest, request: EngineRequest, widths: tuple[int, ...]) -> EngineSpec:
    """Return what to build: the target's engine for these widths."""
    return EngineSpec(
        graph="target",
        flavour=request.flavour,
        version=request.version,
        precision=manifest.precision,
        capacity=manifest.capacity,
        profiles=target_profiles(min(PREFILL_CHUNK, manifest.capacity), widths),
        options=request.options,
        graph_sha256=manifest.graph_sha256("target"),
    )


def build_row(bundle: Path, manifest: Manifest, spec: EngineSpec) -> list[str]:
    """Build in a process of its own, as `build` does; return what it took and what was expected."""
    weights = manifest.files[f"{TARGET_GRAPH}.data"].size
    planned = engine_bytes("target", weights, spec.profiles, manifest.precision)
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
    megabytes = (f"{number / 1e6:.0f}" for number in (size, planned["peak_memory"], planned["engine"]))
    share = f"{entry.peak_memory / weights:.1f}"
    return [f"{entry.build_seconds:.1f}", f"{entry.peak_memory / 1e6:.0f}", share, *megabytes]


def device_row(bundle: Path, manifest: Manifest, spec: EngineSpec) -> list[str]:
    """Build in this process, where the builder's messages can be read."""
    trt = importlib.import_module(MODULES[spec.flavour])
    messages: list[str] = []
    hears = listener(trt, lambda _, message: messages.append(message))
    builder = trt.Builder(hears)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, hears)
    parser.parse_from_file(str(bundle / TARGET_GRAPH))
    builder.build_serialized_network(network, _configure(trt, builder, manifest, spec))
    (weights,), activations = (_sizes(messages, what) for what in ("Weights", "Activation"))
    return [f"{size / 1e6:.1f}" for size in (weights, activations[0], max(activations[1:], default=0))]


def _configure(trt: Any, builder: Any, manifest: Manifest, spec: EngineSpec) -> Any:
    config = builder.create_builder_config()
    contract = contracts_of(manifest)["target"].with_sizes(batch=1, capacity=spec.capacity)
    for sizes in spec.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in shapes_of(contract, sizes).items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)
    capabilities = spec.options.compute_capabilities
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}"), index)
    return config


def _sizes(messages: list[str], what: str) -> list[int]:
    """Return the bytes of "Total Weights Memory", or of "Total Activation Memory", one for each profile."""
    found = (re.match(rf"Total {what} Memory: (\d+) bytes", message) for message in messages)
    return [int(match[1]) for match in found if match]


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--compute-capability", "capabilities", multiple=True, required=True)
@click.option("--device-memory", is_flag=True, help="Build again for what a device will hold.")
def main(bundle: Path, capabilities: tuple[str, ...], device_memory: bool) -> None:
    """Build and print."""
    manifest = read_manifest(bundle)
    if device_memory and manifest.precision == "fp32":
        raise InputError("device memory is read from builds in fp16 or bf16; this bundle is in fp32")
    request = request_engines("tensorrt-rtx", EngineOptions(capabilities))
    weights = manifest.files[f"{TARGET_GRAPH}.data"].size
    columns = (*COLUMNS, *(DEVICE_COLUMNS if device_memory else ()))
    table = Table(*columns, box=None, title=f"target, {manifest.precision}, weights {weights / 1e6:.0f} MB")
    for widths in width_sets(12 if manifest.drafter is None else manifest.drafter.tree.width):
        name, spec = ", ".join(map(str, widths)) or "none", make_spec(manifest, request, widths)
        try:
            row = build_row(bundle, manifest, spec)
        except BackendError as error:
            table.add_row(name, f"refused: {str(error)[:60]}")
            continue
        table.add_row(name, *row, *(device_row(bundle, manifest, spec) if device_memory else ()))
        click.echo(f"built for widths: {name}", err=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    environment.run(main)
