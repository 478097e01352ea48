"""What a quantised build learns of a graph by running it on samples: what is fed, and what rounding costs."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from poss_export.bundling.export import Export
from poss_export.calibration.record import Record
from poss_export.calibration.replay import Feed, check_feeds, replay
from poss_export.engine_spec import GraphName
from poss_export.manifest import GRAPHS
from poss_export.progress import Progress
from poss_export.quantisation.decisions import Sweep
from poss_export.quantisation.sensitivity import sensitivities
from poss_export.quantisation.statistics import Statistics, observe
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtTargetSession

DIALOGUES = 24  # of the samples are observed; what they bring beyond is for the acceptance
_SWEEP_TOKENS = 192


def observe_graph(
    export: Export, graph: GraphName, samples: Record, progress: Progress
) -> dict[str, Statistics]:
    """Return what reaches the sites of a graph when a `shared` export replays the samples."""
    dialogues = samples.dialogues[:DIALOGUES]
    rows = max(dialogue.rows for dialogue in dialogues)
    calls = sum(len(dialogue.rounds) + 1 for dialogue in dialogues)
    with export.open(rows) as bundle:
        assert isinstance(bundle.target, OrtTargetSession)
        assert bundle.drafter is None or isinstance(bundle.drafter, OrtDraftSession)
        drafter = bundle.drafter if graph == "draft" else None
        fed = (feed for name, feed in replay(samples, bundle.target, drafter, DIALOGUES) if name == graph)
        counted = _counted(check_feeds(fed), calls, f"observing {GRAPHS[graph]}", progress)
        return observe(export.graph(graph), counted)


def _counted(feeds: Iterator[Feed], total: int, what: str, progress: Progress) -> Iterator[Feed]:
    for number, feed in enumerate(feeds, start=1):
        progress(what, min(number, total), total, "")
        yield feed


def make_sweep(reference: Export, samples: Record, progress: Progress) -> Sweep:
    """Return what measures how sensitive the target's activations are, on tokens of the samples."""
    feed = _target_feed(reference, _longest_context(samples)[:_SWEEP_TOKENS])
    return lambda model, limits: sensitivities(model, limits, feed, progress=progress)


def _longest_context(samples: Record) -> list[int]:
    """Return the tokens of the dialogue that needs most rows: its prompt and what was committed behind it."""
    dialogue = max(samples.dialogues, key=lambda dialogue: dialogue.rows)
    committed = (round.tree.tokens[list(round.path)] for round in dialogue.rounds)
    tokens: list[int] = np.concatenate((dialogue.prompt, *committed)).tolist()
    return tokens


def _target_feed(reference: Export, ids: list[int]) -> Feed:
    """Return every input of the target's graph for ids read at once into empty caches, all logits wanted."""
    n = len(ids)
    feed: dict[str, Any] = {
        "input_ids": np.array([ids]),
        "position_ids": np.arange(n)[None],
        "tree_mask": np.tri(n, dtype=bool)[None],
        "past_length": np.zeros(1, np.int64),
        "logits_rows": np.arange(n)[None],
    }
    contract = contracts_of(reference.manifest)["target"].with_sizes(batch=1, capacity=n)
    return feed | {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in contract.inputs if spec.is_cache}
