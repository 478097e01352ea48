"""What a quantised build learns of a graph by running it on samples: what is fed, and what rounding costs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from poss_export.bundling.export import Export
from poss_export.calibration.passages import Passage, play
from poss_export.calibration.record import Record
from poss_export.calibration.replay import Feed, check_feeds, dialogue_feeds
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH
from poss_export.progress import Progress
from poss_export.quantisation.decisions import Sweep
from poss_export.quantisation.sensitivity import sensitivities
from poss_export.quantisation.statistics import Statistics, observe
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.round import Round
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession

DIALOGUES = 24  # of the samples are observed
_MOST_ROWS = 512  # of a dialogue, which one call reads
_SWEEP_TOKENS = 192


def observe_target(reference: Export, samples: Record, progress: Progress) -> dict[str, Statistics]:
    """Return what reaches the sites of a target whose `shared` export reads every row of the samples."""
    graph, dialogues = reference.graph("target"), samples.dialogues[:DIALOGUES]
    contract = contracts_of(reference.manifest)["target"]
    most = min(_MOST_ROWS, reference.manifest.capacity)

    def feeds(target: OrtTargetSession) -> Iterator[Feed]:
        for number, dialogue in enumerate(dialogues, start=1):
            yield from dialogue_feeds(target, dialogue)
            progress(f"observing {TARGET_GRAPH}", number, len(dialogues), "")

    with OrtTargetSession(graph, contract, most, OrtOptions()) as target:
        return observe(graph, check_feeds(feeds(target)))


def observe_drafter(
    export: Export, drafter: OrtDraftSession, passages: Sequence[Passage], progress: Progress
) -> tuple[dict[str, Statistics], list[list[Round]]]:
    """Return what reaches the sites of a drafter that plays passages, and its rounds of each."""
    rounds = list[list[Round]]()

    def feeds() -> Iterator[Feed]:
        for number, passage in enumerate(passages, start=1):
            rounds.append([])
            for done in play(drafter, passage):
                rounds[-1].append(done)
                yield drafter.last_feed()
            progress(f"observing {DRAFT_GRAPH}", number, len(passages), "")

    return observe(export.graph("draft"), check_feeds(feeds())), rounds


def make_sweep(reference: Export, samples: Record, progress: Progress) -> Sweep:
    """Return what measures how sensitive the target's activations are, on tokens of the samples."""
    most = min(_SWEEP_TOKENS, reference.manifest.capacity)
    feed = _chain_feed(reference, _joined(samples)[:most])
    return lambda model, limits: sensitivities(model, limits, feed, progress=progress)


def _joined(samples: Record) -> list[int]:
    """Return the tokens of all dialogues, longest first: prompts, and what was committed behind them."""
    parts = list[Any]()
    for dialogue in sorted(samples.dialogues, key=lambda dialogue: -dialogue.rows):
        parts += [dialogue.prompt, *(done.tree.tokens[list(done.path)] for done in dialogue.rounds)]
    tokens: list[int] = np.concatenate(parts).tolist()
    return tokens


def _chain_feed(reference: Export, ids: list[int]) -> Feed:
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
