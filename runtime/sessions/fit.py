"""Which engines of a bundle fit this machine; what does not is refused with the field that is wrong."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from poss_export.contract import GraphContract
from poss_export.engine_spec import (
    MODULES,
    NAMES,
    EngineEntry,
    Flavour,
    GraphName,
    differences,
    embedded_spec,
)
from poss_export.errors import BackendError, BundleError
from poss_export.manifest import Manifest


def choose_engines(
    folder: Path,
    manifest: Manifest,
    contracts: dict[GraphName, GraphContract],
    flavour: Flavour,
    capability: Callable[[], str],
) -> dict[GraphName, list[EngineEntry]]:
    """Return each graph's engines for the device of this machine, all checked, by ascending capacity.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        contracts: of its graphs.
        flavour: which library runs the engines.
        capability: gives the compute capability of the device; asked only when all else is right.

    Raises:
        BundleError: an engine is not what the manifest says of it.
        BackendError: there is no engine for this library or this device.
    """
    fitting: dict[GraphName, list[EngineEntry]] = {}
    for graph, contract in contracts.items():
        spec = (graph, flavour)
        fitting[graph] = [e for e in manifest.engines if (e.spec.graph, e.spec.flavour) == spec]
        if not fitting[graph]:
            raise BackendError(
                f"{str(folder)!r} has no {NAMES[flavour]} engine of its {graph} graph: "
                f"run its build again for backend {flavour}"
            )
        for entry in fitting[graph]:
            check_engine(folder, manifest, contract, entry)
    device = capability()
    return {graph: _for_device(entries, device, manifest.capacity) for graph, entries in fitting.items()}


def check_engine(folder: Path, manifest: Manifest, contract: GraphContract, entry: EngineEntry) -> None:
    """Raise BundleError that names the first field of `entry` that bundle or engine contradict."""
    spec, file = entry.spec, entry.spec.file
    kind = "decomposed" if manifest.precision == "fp32" else "fused"
    layers = manifest.target.config.num_layers if spec.graph == "target" else 0  # drafters write it out
    facts: list[tuple[str, object, object]] = [
        ("precision", spec.precision, manifest.precision),
        (f"capacity, at most {manifest.capacity},", spec.capacity <= manifest.capacity, True),
        ("graph_sha256", spec.graph_sha256, manifest.graph_sha256(spec.graph)),
        ("aliases", dict(entry.aliases), contract.aliases),
        ("attention", list(entry.attention.values()), [kind] * layers),
        ("file", file if file in manifest.files else None, file),
        ("build_seconds above 0", entry.build_seconds > 0, True),
        ("peak_memory above 0", entry.peak_memory > 0, True),
    ]
    for name, have, want in facts:
        if have != want:
            raise BundleError(f"engine {file}: {name} is {have}, expected {want}; build it again")
    embedded = embedded_spec(folder / file)
    if embedded is None:
        raise BundleError(f"{file} is no engine of this project, or is damaged; build it again")
    for name, have, want in differences(spec, embedded):
        raise BundleError(
            f"engine {file}: {name} is {have} in the manifest, but {want} in the engine; build it again"
        )


def _for_device(entries: Sequence[EngineEntry], device: str, capacity: int) -> list[EngineEntry]:
    """Return one engine of each capacity; the bundle's own is among them."""
    found = {entry.spec.capacity: entry for entry in reversed(entries) if _runs_on(entry, device)}
    if capacity not in found:
        spec = entries[0].spec
        there = sorted({name for entry in entries for name in entry.spec.options.compute_capabilities})
        raise BackendError(
            f"the {spec.graph} engines are for compute capability {', '.join(there)}, this device has "
            f"{device}: run the build again for backend {spec.flavour} and this device"
        )
    return [entry for _, entry in sorted(found.items())]


def _runs_on(entry: EngineEntry, device: str) -> bool:
    options = entry.spec.options
    newer = tuple(map(int, device.split("."))) >= (8, 0)
    return device in options.compute_capabilities or (options.hardware_compatible and newer)


def load_library(entry: EngineEntry) -> Any:
    """Return the module of the library that runs `entry`.

    Raises:
        BackendError: it is not installed, or in another version.
    """
    spec = entry.spec
    try:
        library = importlib.import_module(MODULES[spec.flavour])
    except ImportError as error:
        raise BackendError(
            f"{NAMES[spec.flavour]} cannot be imported ({error}): pip install 'poss-export[{spec.flavour}]'"
        ) from error
    if library.__version__ != spec.version and not spec.options.version_compatible:
        raise BackendError(
            f"{spec.file} was built by version {spec.version}, installed is {library.__version__}: "
            "install that version, or build the engine again"
        )
    return library
