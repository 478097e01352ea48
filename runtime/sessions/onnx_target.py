"""Which session runs the target of a bundle in ONNX Runtime."""

from pathlib import Path

from poss_export.contract import GraphContract
from poss_export.manifest import TARGET_GRAPH, Manifest
from poss_export.runtime.sessions.base import TargetSession
from poss_export.runtime.sessions.ort import OrtOptions, OrtTargetSession
from poss_export.runtime.sessions.packed import PackedTargetSession


def onnx_target(
    folder: Path, manifest: Manifest, contract: GraphContract, options: OrtOptions, cache: Path | None = None
) -> TargetSession:
    """Return the session, not entered, of the target of a bundle in `folder`.

    cache: the folder of weights that sessions share; None: the user's.
    """
    shared, graph = manifest.cache_form == "shared", folder / TARGET_GRAPH
    least = (manifest.exactness.least_width or 1) if shared else 1
    of_target = contract, manifest.capacity, options, least
    if options.slots > 1 and options.provider == "cpu" and shared:
        return PackedTargetSession(graph, manifest.graph_sha256("target"), *of_target, cache)
    return OrtTargetSession(graph, *of_target, shares=not shared)
