"""From a plan to a bundle: graphs, engines, manifest, then one rename that makes it appear."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from poss_export.bundling.engines import build_engines, missing_engines
from poss_export.bundling.estimate import check_room, may_measure
from poss_export.bundling.graphs import make_graphs
from poss_export.bundling.identity import difference, plan_facts
from poss_export.bundling.plan import Plan
from poss_export.bundling.staging import check_output, link_or_copy, publish, real_folder, unfinished
from poss_export.errors import InputError
from poss_export.evaluation.beside import measure_beside
from poss_export.manifest import MANIFEST, Manifest, describe_files, read_manifest, write_manifest
from poss_export.progress import Progress, Report, silent


def build_bundle(
    plan: Plan,
    folder: Path,
    *,
    argv: Sequence[str] = (),
    force: bool = False,
    report: Report = silent,
    progress: Progress = silent,
) -> Manifest:
    """Build the bundle and put it at `folder`, whole or not at all.

    A bundle that is there already keeps what the plan would build again unchanged, and gets what it lacks;
    `force` builds everything anew.

    Raises:
        InputError: `folder` cannot be written, or is another bundle that `force` may replace, or none; the
            disk or the memory is too small.
        CheckpointError: the drafter's copy of a table is not the target's.
        ParityError: a graph does not compute what PyTorch does.
        PossExportError: as `Target.load_decoder`, `make_graphs` and `build_engines` raise it.
    """
    check_output(folder)
    folder = real_folder(folder)
    present = _kept(plan, folder, force)
    if present is not None and not missing_engines(plan, present):
        report(f"{folder} is unchanged: nothing to build")
        return present
    check_room(plan, folder, report)
    with unfinished(folder) as made:
        present = _kept(plan, folder, force)  # another build may have ended meanwhile
        if present is None:
            manifest = make_graphs(made, plan, argv, report, progress)
            if may_measure(plan):
                report("measuring answers beside others")
                manifest = replace(manifest, beside=measure_beside(made, manifest))
        else:
            manifest = replace(present, argv=tuple(argv), engines=())
            for name in manifest.files:
                link_or_copy(folder / name, made / name)
        kept = () if present is None else present.engines
        engines = build_engines(made, plan, manifest, kept, report, progress)
        manifest = replace(manifest, engines=engines)
        report("writing the manifest")
        manifest.files.update(describe_files(made, [entry.spec.file for entry in engines]))
        write_manifest(made, manifest)
        publish(made, folder)
    return manifest


def _kept(plan: Plan, folder: Path, force: bool) -> Manifest | None:
    """Return the manifest of a bundle at `folder` whose graphs are kept; None where all is built."""
    return _unchanged(plan, folder) if (folder / MANIFEST).is_file() and not force else None


def _unchanged(plan: Plan, folder: Path) -> Manifest:
    """Return the manifest of the bundle at `folder`, whose graphs are those of the plan.

    Raises:
        InputError: they are others.
        BundleError: it is damaged.
    """
    manifest = read_manifest(folder)
    if differing := difference(plan_facts(manifest, plan)):
        raise InputError(
            f"{str(folder)!r} exists, and it has another {differing}: choose another output folder, "
            "or replace it",
            options=("force",),
        )
    return manifest
