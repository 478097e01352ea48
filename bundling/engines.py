"""The engines of a bundle: which ones a plan asks for, which are missing, and their build from the graphs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from poss_export.bundling.graphs import graphs_of_capacity
from poss_export.bundling.plan import Plan
from poss_export.engine_spec import EngineEntry, EngineSpec
from poss_export.exporters.engine_build import build_engine
from poss_export.manifest import GRAPHS, Manifest
from poss_export.progress import Progress, Report
from poss_export.runtime.bundle import contracts_of


def missing_engines(plan: Plan, manifest: Manifest) -> list[EngineSpec]:
    """Return what the plan asks for and the bundle does not have."""
    present = {entry.spec.file: entry.spec for entry in manifest.engines}
    return [spec for spec in _specs(plan, manifest) if present.get(spec.file) != spec]


def build_engines(
    folder: Path,
    plan: Plan,
    manifest: Manifest,
    kept: Sequence[EngineEntry],
    report: Report,
    progress: Progress,
) -> tuple[EngineEntry, ...]:
    """Build what is missing into `folder`; return all engines of the bundle, `kept` ones first.

    Raises:
        BackendError: a graph breaks a rule of the parser, or the builder refuses it or dies.
    """
    engines = {entry.spec.file: entry for entry in kept}
    contracts = contracts_of(manifest)
    missing = missing_engines(plan, replace(manifest, engines=tuple(kept)))
    for capacity in sorted({spec.capacity for spec in missing}, reverse=True):
        with graphs_of_capacity(folder, plan, capacity, report) as graphs:
            for spec in (spec for spec in missing if spec.capacity == capacity):
                assert plan.engines is not None
                (folder / spec.file).unlink(missing_ok=True)  # a link to what the bundle has now
                engines[spec.file] = build_engine(
                    graphs / GRAPHS[spec.graph],
                    contracts[spec.graph],
                    spec,
                    folder / spec.file,
                    timing_cache=plan.engines.timing_cache,
                    progress=progress,
                )
    return tuple(engines.values())


def _specs(plan: Plan, manifest: Manifest) -> list[EngineSpec]:
    """Return every engine that the plan asks for."""
    if plan.engines is None:
        return []
    return [
        EngineSpec(
            graph=graph,
            flavour=plan.engines.flavour,
            version=plan.engines.version,
            precision=plan.precision,
            capacity=capacity,
            profiles=profiles,
            options=plan.engines.options,
            graph_sha256=manifest.graph_sha256(graph),
        )
        for capacity in (plan.capacity, *plan.engines.capacities)
        for graph, profiles in plan.engine_profiles(capacity).items()
    ]
