"""The graphs of a bundle: exported, compared with PyTorch, quantised; rounds of them, to learn from."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from poss_export.bundling.comparing import compare_graphs, in_pieces
from poss_export.bundling.estimate import runs_whole
from poss_export.bundling.export import Export
from poss_export.bundling.plan import Plan
from poss_export.bundling.quantise import quantise_bundle
from poss_export.drafters.checkpoint import check_tables
from poss_export.errors import CheckpointError
from poss_export.evaluation.parity import require_parity
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.reference import make_reference, round_beside
from poss_export.exporters.target import export_target
from poss_export.machine import versions
from poss_export.manifest import (
    DRAFT_GRAPH,
    DRAFT_IDS,
    TARGET_GRAPH,
    TOKENIZER,
    DrafterEntry,
    EmbeddingTable,
    Manifest,
    TargetEntry,
    describe_files,
)
from poss_export.progress import Progress, Report, silent
from poss_export.reference import Reference

_DEEP = 24  # levels of a tree whose trace takes longer than people wait without a word
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def make_graphs(
    folder: Path, plan: Plan, argv: Sequence[str], report: Report, progress: Progress
) -> Manifest:
    """Fill `folder` with everything but the manifest and engines; return the manifest.

    Raises:
        CheckpointError: the drafter's copy of a table is not the target's.
        ParityError: a graph does not compute what PyTorch does.
        QualityError: a quantised graph loses more than is allowed.
    """
    if plan.quantise is None:
        return _export(folder, plan, argv, report, progress)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = _source(Path(name) / "source", plan, argv, report, progress)
        reference = source
        if plan.cache_form != "shared" or plan.precision == "bf16":
            report("exporting again, as the CPU runs it")
            common = replace(plan, cache_form="shared", precision="fp32")
            reference = _source(Path(name) / "reference", common, argv, silent, progress)
        manifest = quantise_bundle(
            source, reference, folder, plan.quantise, report=report, progress=progress, whole=runs_whole(plan)
        )
    return replace(manifest, files=_described(folder, {}))


@contextmanager
def graphs_of_capacity(folder: Path, plan: Plan, capacity: int, report: Report) -> Iterator[Path]:
    """Give the folder with the graphs of a capacity: the bundle's own, or others, checked like them."""
    if capacity == plan.capacity:
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=folder) as other:
        report(f"exporting again for {capacity} tokens")
        smaller = replace(plan, capacity=capacity, engines=None)
        if not plan.quantise_requests:
            smaller = replace(smaller, quantise=None)  # nothing is learned that these graphs need
        make_graphs(Path(other), smaller, (), silent, silent)
        yield Path(other)


def library_versions(*further: str) -> dict[str, str]:
    """Return the versions of this package, of what it exports with, and of further libraries."""
    return versions(*_LIBRARIES, *further)


def _source(folder: Path, plan: Plan, argv: Sequence[str], report: Report, progress: Progress) -> Export:
    folder.mkdir()
    return Export(folder, _export(folder, plan, argv, report, progress))


def _export(folder: Path, plan: Plan, argv: Sequence[str], report: Report, progress: Progress) -> Manifest:
    """Export the graphs in floating point and check them."""
    embedding, reference, hashes = _export_graphs(folder, plan, report, progress)
    (folder / TOKENIZER).write_text(plan.target.text.tokenizer_json, encoding="utf-8")
    if plan.drafter is not None:
        np.save(folder / DRAFT_IDS, plan.drafter.drafter.draft_ids.numpy())
    manifest = _describe(plan, embedding, argv)
    report("checking parity with PyTorch")
    manifest.parity.update(compare_graphs(folder, manifest, reference, progress))
    require_parity(manifest.parity, plan.precision)
    return replace(manifest, files=_described(folder, hashes), in_pieces=in_pieces(plan.target.config))


def _export_graphs(
    folder: Path, plan: Plan, report: Report, progress: Progress
) -> tuple[EmbeddingTable, Reference, dict[str, str]]:
    """Write the graphs; return where the embedding table lies, PyTorch's results, and hashes of weights."""
    shape: Any = {
        "cache_form": plan.cache_form,
        "precision": plan.precision,
        "capacity": plan.capacity,
        "progress": progress,
    }
    report(f"running {plan.target.name} in PyTorch")
    decoder, draft_round = plan.target.stream_decoder(), None
    if plan.drafter is not None:
        check_tables(decoder, plan.drafter)
        draft_round = round_beside(decoder, plan.drafter.drafter, plan.tree)
    reference = make_reference(decoder, draft_round)
    _require_numbers(plan, reference)
    report(f"exporting {TARGET_GRAPH}")
    taps = () if draft_round is None else draft_round.config.taps
    exported = export_target(decoder, folder / TARGET_GRAPH, taps=taps, **shape)
    hashes = {f"{TARGET_GRAPH}.data": exported.sha256}
    if draft_round is not None:
        levels = plan.tree.depth
        slow = f": {levels} levels are traced one by one, which takes minutes" if levels > _DEEP else ""
        report(f"exporting {DRAFT_GRAPH}{slow}")
        hashes[f"{DRAFT_GRAPH}.data"] = export_drafter(draft_round, folder / DRAFT_GRAPH, **shape)
    return exported.embedding, reference, hashes


def _require_numbers(plan: Plan, reference: Reference) -> None:
    """Raise CheckpointError where PyTorch itself makes infinities or nothing of a checkpoint's weights."""
    if not np.isfinite(reference.logits).all():
        raise CheckpointError(
            f"the logits of target {plan.target.name!r} are no numbers in PyTorch: its weights are damaged "
            "or were never trained; fetch it again"
        )
    if plan.drafter is not None and not all(np.isfinite(tree[-1]).all() for tree in reference.trees):
        raise CheckpointError(
            f"the scores of drafter {plan.drafter.name!r} are no numbers in PyTorch: its features grow "
            "beyond all bounds, as those of a drafter that was never trained; train it, or take another"
        )


def _describe(plan: Plan, embedding: EmbeddingTable, argv: Sequence[str]) -> Manifest:
    """Return the manifest of the plan's graphs, without figures and files."""
    target, drafter = plan.target, None
    if plan.drafter is not None:
        made = plan.drafter
        drafter = DrafterEntry(made.name, made.sha256, made.drafter.config, plan.tree, made.vocabulary)
    return Manifest(
        target=TargetEntry(target.name, target.sha256, target.config, embedding, target.dequantised),
        drafter=drafter,
        precision=plan.precision,
        cache_form=plan.cache_form,
        capacity=plan.capacity,
        text=target.text.config,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=tuple(argv),
        versions=library_versions(*target.text_libraries),
        parity={},
        files={},
    )


def _described(folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    return describe_files(folder, [path.name for path in folder.iterdir()], hashes)
