"""Which tree pays: a target that is exported once, and one drafter and tree after another beside it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import Plan, plan_build
from poss_export.config import TreeShape
from poss_export.contract import draft_contract, target_contract
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.evaluation.answers import take_turns
from poss_export.evaluation.metrics import decode_speed, pooled_tau, round_parts
from poss_export.evaluation.parity import compare, require_parity
from poss_export.exporters.drafter import export_drafter
from poss_export.exporters.reference import make_reference, round_beside
from poss_export.exporters.target import export_target
from poss_export.machine import cores
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH
from poss_export.progress import silent
from poss_export.reference import ROWS
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession
from poss_export.targets.checkpoint import Target

_FORM: dict[str, Any] = {"precision": "fp32", "cache_form": "shared"}


def capacity_for(prompts: Sequence[Sequence[int]], tokens: int, trees: Sequence[TreeShape]) -> int:
    """Return the tokens that a cache must hold for answers of `tokens` tokens and their last trees."""
    return max(ROWS, max(map(len, prompts)) + tokens + max(tree.nodes for tree in trees))


def plan_pair(target: Target, drafter: DrafterCheckpoint | None, tree: TreeShape, capacity: int) -> Plan:
    """Return the plan of one build; raises what `plan_build` does."""
    return plan_build(target, drafter, tree=tree, capacity=capacity, **_FORM)


@contextmanager
def exported(target: Target, capacity: int) -> Iterator[Bundle]:
    """Give a temporary bundle of the target alone, its engine loaded, for `paired`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "target"
        plan = plan_pair(target, None, TreeShape(), capacity)
        build_bundle(plan, path, argv=(), force=False, report=silent)
        with open_bundle(path, threads=cores()) as bundle:
            yield bundle


@contextmanager
def paired(bundle: Bundle, target: Target, drafter: DrafterCheckpoint, tree: TreeShape) -> Iterator[None]:
    """Put a drafter beside the `exported` target: its round is exported, and checked as a build does.

    For a drafter that reads taps, a target that gives them takes the place of the other.

    Raises:
        CheckpointError, InputError, ParityError: as a build with this drafter and tree.
    """
    manifest, capacity = bundle.manifest, bundle.manifest.capacity
    plan_pair(target, drafter, tree, capacity)  # refuses what does not fit
    decoder = target.stream_decoder()
    draft_round = round_beside(decoder, drafter.drafter, tree)
    reference, config = make_reference(decoder, draft_round), drafter.drafter.config
    options, plain = OrtOptions(threads=cores()), bundle.target
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        if config.taps:
            export_target(decoder, folder / TARGET_GRAPH, capacity=capacity, taps=config.taps, **_FORM)
            contract = target_contract(target.config, manifest.precision, config.taps)
            tapped = OrtTargetSession(folder / TARGET_GRAPH, contract, capacity, options)
            bundle.target = stack.enter_context(tapped)
        try:
            export_drafter(draft_round, folder / DRAFT_GRAPH, capacity=capacity, **_FORM)
            contract = draft_contract(config, tree, manifest.precision)
            embeddings = manifest.target.embedding.open(bundle.folder)
            session = OrtDraftSession(folder / DRAFT_GRAPH, contract, capacity, options, embeddings)
            bundle.drafter = stack.enter_context(session)
            require_parity(compare(bundle, reference), manifest.precision)
            yield
        finally:
            bundle.target, bundle.drafter = plain, None


def measure_tree(
    bundle: Bundle,
    target: Target,
    drafter: DrafterCheckpoint,
    tree: TreeShape,
    prompts: Sequence[Sequence[int]],
    tokens: int,
) -> dict[str, Any]:
    """Return the figures of one shape as JSON values.

    tau, the parts of a mean round and a plain step in milliseconds; `ratio` is of decoding speed to that of
    the target alone, which answers the same prompts in turns. Raises what `paired` does.
    """
    with paired(bundle, target, drafter, tree):
        ours, alone = take_turns(bundle, prompts, tokens, planning=None)
    return {
        "tree": asdict(tree),
        **round_parts(ours),
        "tau": pooled_tau(ours),
        "plain": round_parts(alone)["round"],
        "ratio": decode_speed(ours) / decode_speed(alone),
    }
