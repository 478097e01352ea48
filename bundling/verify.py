"""The checks of a finished bundle, in one call: with PyTorch where it is installed, else without."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from poss_export.engine_spec import Backend
from poss_export.errors import InputError, PossExportError
from poss_export.evaluation.checks import (
    NO_DRAFTER,
    Check,
    Verification,
    check_cache_laws,
    check_greedy,
    check_sampled,
    check_sampling,
    check_together,
)
from poss_export.evaluation.filters import check_filters
from poss_export.evaluation.held_out import PROMPTS
from poss_export.evaluation.parity import FIGURES, SCORES, check_name, check_parity
from poss_export.evaluation.rounds import check_rounds
from poss_export.manifest import DRAFT_GRAPH, DRAFT_IDS, TARGET_GRAPH, DrafterEntry, Manifest, read_manifest
from poss_export.progress import Report, silent
from poss_export.prompts import Prompt
from poss_export.reference import Reference
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions.facts import engine_facts
from poss_export.runtime.sessions.ort import Provider

if TYPE_CHECKING:
    from poss_export.bundling.identity import Fact
    from poss_export.drafters.checkpoint import DrafterCheckpoint
    from poss_export.targets.checkpoint import Target

_QUANTISED = "quantised graphs were compared when they were built; `inspect` tells what they lose"

Checkpoint = TypeVar("Checkpoint", "Target", "DrafterCheckpoint")


def verify(
    folder: Path,
    *,
    target: str | None = None,
    drafter: str | None = None,
    prompts: Sequence[Prompt] = PROMPTS,
    max_new_tokens: int = 64,
    draws: int = 8000,
    backend: Backend = "onnxruntime",
    provider: Provider = "cpu",
    threads: int | None = None,
    slots: int = 1,
    costs: bool = False,
    report: Report = silent,
    tell: Callable[[Check], None] = silent,
) -> Verification:
    """Check that a bundle is whole, computes what PyTorch does, and loses nothing by speculating.

    Args:
        folder: the bundle.
        target: where its target is, as for a build; None takes the name in the manifest.
        drafter: where its drafter is, likewise.
        prompts: answered with and without the drafter, all turns, greedily and sampled.
        max_new_tokens: longest answer, in tokens.
        draws: samples for the distribution test.
        backend: what runs the bundle.
        provider: of ONNX Runtime.
        threads: of the CPU; None leaves it to ONNX Runtime.
        slots: answers at once, each of which must be as alone.
        costs: tell what rounds cost too; where that is not known yet, it is measured.
        report: told what begins.
        tell: told each check when it is made, for whoever cannot wait for all.

    Returns:
        The checks; one that cannot be made here is skipped and says why.

    Raises:
        BundleError: the bundle is damaged, or lacks engines for the backend.
        BackendError: the backend does not run here.
        InputError: there are no prompts.
        PossExportError: a checkpoint that is named cannot be opened, or is another one.
    """
    if not prompts:
        raise InputError("no prompts; give at least one to answer", options=("prompts",))
    manifest = read_manifest(folder, full=True)
    checks: list[Check] = []

    def found(*made: Check) -> None:
        checks.extend(made)
        for check in made:
            tell(check)

    found(Check("files", True, f"{len(manifest.files)} files are as they were built"))
    reference, made = _reference(folder, manifest, target, drafter, report)
    found(*made)
    with open_bundle(folder, threads=threads, provider=provider, backend=backend, slots=slots) as bundle:
        if reference is not None:
            found(*check_parity(bundle, reference))
        found(*check_cache_laws(bundle))
        if any(check.figures.get("difference", 0) is None for check in checks):
            found(Check("answers", None, "results of the graphs are no numbers; nothing was asked"))
        else:
            for check in _check_answers(bundle, prompts, max_new_tokens, draws, report):
                found(check)
        return Verification(
            manifest,
            tuple(checks),
            engine_facts(backend, provider, threads),
            bundle.planners.costs if costs else None,
        )


def _check_answers(
    bundle: Bundle, prompts: Sequence[Prompt], max_new_tokens: int, draws: int, report: Report
) -> Iterator[Check]:
    yield check_greedy(bundle, prompts, max_new_tokens, report)
    yield check_sampled(bundle, prompts, max_new_tokens, report)
    if bundle.target.slots > 1:
        yield check_together(bundle, prompts, max_new_tokens, report)
    yield from check_rounds(bundle, prompts, max_new_tokens, report)
    yield check_filters(bundle.manifest.target.config.vocab_size)
    yield check_sampling(bundle, prompts, draws, report)


def _reference(
    folder: Path, manifest: Manifest, target: str | None, drafter: str | None, report: Report
) -> tuple[Reference | None, list[Check]]:
    """Return PyTorch's results, where they can be had, and the checks made or skipped on the way."""
    try:
        return _run_pytorch(folder, manifest, target, drafter, report)
    except ImportError as error:
        return None, [Check("parity", None, f"{error}; pip install 'poss-export[export]'")]


def _run_pytorch(
    folder: Path, manifest: Manifest, target: str | None, drafter: str | None, report: Report
) -> tuple[Reference | None, list[Check]]:
    """Return the results for the checkpoints that a bundle was made from, and checks as `_reference`."""
    from poss_export.exporters.reference import make_reference, round_beside

    opened, reason = _find_target(manifest, target)
    checks = [] if opened is None else [_check_text(manifest, opened)]
    if "target" in manifest.quantisation:
        return None, [*checks, Check("parity", None, _QUANTISED)]
    if opened is None:
        return None, [Check(check_name(figure), None, reason) for figure in FIGURES]
    if "draft" in manifest.quantisation:
        checkpoint, reason = None, _QUANTISED
    else:
        checkpoint, reason = _find_drafter(manifest.drafter, drafter)
    checks.append(_check_tables(folder, manifest, opened, checkpoint))
    report("running PyTorch")
    decoder = opened.stream_decoder()
    if checkpoint is None or manifest.drafter is None:
        return make_reference(decoder, None), [*checks, Check(check_name(SCORES), None, reason)]
    checkpoint.drafter.settle(manifest.drafter.config)  # not all checkpoints tell all of it
    draft_round = round_beside(decoder, checkpoint.drafter, manifest.drafter.tree)
    return make_reference(decoder, draft_round), checks


def _check_text(manifest: Manifest, target: "Target") -> Check:
    """Compare the bundle's tokenizer, template and stop tokens with what the target's files say now."""
    from poss_export.bundling.identity import difference, text_facts

    if differing := difference(text_facts(manifest, target)):
        return Check(
            "text", False, f"{target.name!r} has another {differing} than the bundle: build it again"
        )
    return Check("text", True, "tokenizer, template and stop tokens are the target's")


def _check_tables(
    folder: Path, manifest: Manifest, target: "Target", drafter: "DrafterCheckpoint | None"
) -> Check:
    """Compare the tables in the graphs with what they must be; without a drafter, the target's alone."""
    from poss_export.exporters.tables import missing_tables, rotary

    config, precision, rows = target.config, manifest.precision, manifest.capacity
    graphs = {TARGET_GRAPH: rotary(config.ropes, config.head_dim, rows, precision)}
    if drafter is not None:
        own = drafter.drafter.config
        graphs[DRAFT_GRAPH] = rotary((own.rope,), own.head_dim, rows, precision)
        graphs[DRAFT_GRAPH]["draft ids"] = drafter.drafter.draft_ids
    wrong = [
        f"{graph} has other {name}"
        for graph, tables in graphs.items()
        for name in missing_tables(folder / graph, tables)
    ]
    if drafter is not None and not np.array_equal(np.load(folder / DRAFT_IDS), drafter.drafter.draft_ids):
        wrong.append(f"{DRAFT_IDS} has other draft ids")
    return Check("tables", not wrong, "; ".join(wrong) or "rotary tables and draft ids are the checkpoint's")


def _find_target(manifest: Manifest, spec: str | None) -> "tuple[Target | None, str]":
    from poss_export.bundling.identity import target_facts
    from poss_export.targets.checkpoint import open_target

    return _find(open_target, "target", manifest.target.name, spec, partial(target_facts, manifest))


def _find_drafter(entry: DrafterEntry | None, spec: str | None) -> "tuple[DrafterCheckpoint | None, str]":
    from poss_export.bundling.identity import drafter_facts
    from poss_export.drafters.checkpoint import load_drafter

    if entry is None:
        return None, NO_DRAFTER

    def opened(name: str) -> "DrafterCheckpoint":
        positions = entry.config.positions_per_specialist  # not all checkpoints state it
        found = load_drafter(name, positions)
        cut = entry.vocabulary if found.sha256 == entry.sha256 else None
        return found if cut is None else found.cut(cut)

    return _find(opened, "drafter", entry.name, spec, partial(drafter_facts, entry))


def _find(
    opener: Callable[[str], Checkpoint],
    what: str,
    recorded: str,
    spec: str | None,
    facts: "Callable[[Checkpoint], list[Fact]]",
) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint that the manifest records, or None and why it cannot be had."""
    from poss_export.bundling.identity import difference

    name = recorded if spec is None else spec
    try:
        found = opener(name)
    except PossExportError:
        if spec is not None:
            raise
        return None, f"{name!r} is not at hand, name its place as the {what}"
    differing = difference(facts(found))
    if not differing:
        return found, ""
    message = f"{name!r} is not the checkpoint that this bundle was made from: it has another {differing}"
    if spec is not None:
        raise InputError(message)
    return None, message
