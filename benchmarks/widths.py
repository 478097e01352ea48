"""What a target call costs by its width, in several bundles at a time."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.workers import Setup, Worker
from poss_export.evaluation.laws import append
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.tree import DraftTree

WIDTHS = (1, 2, 4, 8, 12, 16, 32)  # of target calls, in tokens


@dataclass(frozen=True)
class Turn:
    """A call of each width, once, and the width that target-only decoding has in this bundle."""

    plain_width: int
    milliseconds: dict[int, float]


def width_turns(setup: Setup, past: int) -> Callable[[], Turn]:
    """Return a function that makes a target call of each width behind `past` tokens, all logits wanted."""
    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends
    target, vocab = bundle.target, bundle.manifest.target.config.vocab_size
    plain = bundle.manifest.least_width
    target.reset()
    append(target, np.random.default_rng(0).integers(0, vocab, past))
    tokens = np.random.default_rng(1).integers(0, vocab, max(WIDTHS))
    chains = {width: DraftTree.chain(tokens[:width]) for width in sorted({*WIDTHS, plain})}

    def turn() -> Turn:
        times = {}
        for width, chain in chains.items():
            start = time.perf_counter()
            target.forward(chain)
            times[width] = 1000 * (time.perf_counter() - start)
        return Turn(plain, times)

    return turn


def measure_widths(bundles: Mapping[str, Setup], past: int, calls: int) -> dict[str, dict[str, Any]]:
    """Return, for each bundle, medians of calls that all bundles make in turns; the first turn warms up."""
    opener = partial(width_turns, past=past)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(opener, setup)) for name, setup in bundles.items()}
        turns = [{name: worker() for name, worker in workers.items()} for _ in range(calls + 1)][1:]
    found = {}
    for name in workers:
        own = [turn[name] for turn in turns]
        times = {w: statistics.median(turn.milliseconds[w] for turn in own) for w in own[0].milliseconds}
        plain = own[0].plain_width
        steps = {width: value / times[plain] for width, value in times.items()}
        found[name] = {"plain_width": plain, "milliseconds_by_width": times, "plain_steps_by_width": steps}
    return found
