"""What a bundle, a drafter or a target is: facts of its files, for whoever prints them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poss_export.acceptance import AcceptanceCurves
from poss_export.config import TargetConfig
from poss_export.drafter_config import DrafterConfig
from poss_export.errors import InputError
from poss_export.manifest import ACCEPTANCE, GRAPHS, MANIFEST, Manifest, read_manifest


@dataclass(frozen=True)
class BundleFacts:
    """A bundle: its manifest, and what the drafter's scores are worth where that was calibrated."""

    folder: Path
    manifest: Manifest
    acceptance: AcceptanceCurves | None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each graph with its weights, of engines, and of all files."""
        files = {name: entry.size for name, entry in self.manifest.files.items()}
        graphs: dict[str, int] = {
            graph: sum(files.get(f"{file}{end}", 0) for end in ("", ".data"))
            for graph, file in GRAPHS.items()
        }
        engines = sum(files[entry.spec.file] for entry in self.manifest.engines)
        return {**graphs, "engines": engines, "all": sum(files.values())}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        acceptance = None if self.acceptance is None else self.acceptance.to_dict()
        sizes = {"parameters": self.manifest.target.config.parameters, "sizes": self.sizes}
        return {"kind": "bundle", **self.manifest.to_dict(), **sizes, "acceptance": acceptance}


@dataclass(frozen=True)
class DrafterFacts:
    """A drafter's checkpoint: whose it is and why we think so, which weights it has, and its choices.

    `target_sha256` is of the target that it was trained for, where it says so.
    """

    name: str
    dialect: str
    recognised_by: str
    sha256: str
    target_sha256: str | None
    parameters: int
    config: DrafterConfig
    unsettled: bool  # as `DrafterCheckpoint` says it

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"kind": "drafter", **asdict(self)}


@dataclass(frozen=True)
class TargetFacts:
    """A target's checkpoint."""

    name: str
    sha256: str
    parameters: int
    config: TargetConfig
    weight_files: tuple[str, ...]
    dequantised: str | None  # as `Target` says it

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"kind": "target", **asdict(self)}


Facts = BundleFacts | DrafterFacts | TargetFacts


def facts_of(thing: str, positions_per_specialist: int | None = None) -> Facts:
    """Return the facts of a bundle, a drafter or a target, named as for a build.

    `positions_per_specialist`: of a drafter that does not state it.

    Raises:
        PossExportError: it is none of them, or is damaged.
    """
    facts = _facts(thing, positions_per_specialist)
    if positions_per_specialist is not None and not isinstance(facts, DrafterFacts):
        kind = "bundle" if isinstance(facts, BundleFacts) else "target"
        raise InputError(
            f"{thing!r} is a {kind}; positions per specialist are of drafters: leave the option out"
        )
    return facts


def _facts(thing: str, positions_per_specialist: int | None) -> Facts:
    if (Path(thing) / MANIFEST).is_file():
        return _bundle_facts(Path(thing))
    # Checkpoints need PyTorch, bundles do not.
    from poss_export.drafters.checkpoint import is_drafter

    return _drafter_facts(thing, positions_per_specialist) if is_drafter(thing) else _target_facts(thing)


def _bundle_facts(folder: Path) -> BundleFacts:
    manifest = read_manifest(folder)
    acceptance = AcceptanceCurves.load(folder / ACCEPTANCE) if ACCEPTANCE in manifest.files else None
    return BundleFacts(folder, manifest, acceptance)


def _drafter_facts(spec: str, positions_per_specialist: int | None) -> DrafterFacts:
    from poss_export.drafters.checkpoint import load_drafter

    drafter = load_drafter(spec, positions_per_specialist)
    return DrafterFacts(
        name=drafter.name,
        dialect=drafter.dialect.name,
        recognised_by=drafter.dialect.reason,
        sha256=drafter.sha256,
        target_sha256=drafter.target_sha256,
        parameters=drafter.parameters,
        config=drafter.drafter.config,
        unsettled=drafter.unsettled,
    )


def _target_facts(spec: str) -> TargetFacts:
    from poss_export.targets.checkpoint import open_target

    target = open_target(spec)
    return TargetFacts(
        name=target.name,
        sha256=target.sha256,
        parameters=target.parameters,
        config=target.config,
        weight_files=tuple(str(path) for path in target.weight_files),
        dequantised=target.dequantised,
    )
