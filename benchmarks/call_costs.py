"""What a target call costs by its width, in several bundles at a time."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.workers import Setup, Worker
from poss_export.evaluation.latency import milliseconds, target_calls
from poss_export.manifest import Manifest
from poss_export.runtime.bundle import open_bundle

WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32)  # of target calls, in tokens

Turn = dict[int, float]  # ms of a call of each width


def plain_width(manifest: Manifest) -> int:
    """Return the tokens of a target call in target-only decoding: 1, unless calls are filled up."""
    return manifest.exactness.least_width or 1


def width_turns(setup: Setup, past: int) -> Callable[[], Turn]:
    """Return a function that makes a target call of each width behind `past` tokens, all logits wanted."""
    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends
    widths = sorted({*WIDTHS, plain_width(bundle.manifest)})
    calls = target_calls(bundle.target, bundle.manifest.target.config.vocab_size, past, widths)
    return lambda: {width: milliseconds(call) for width, call in calls.items()}


def measure_calls(
    bundles: Mapping[str, tuple[Manifest, Setup]], past: int, calls: int
) -> dict[str, dict[str, Any]]:
    """Return, for each bundle, medians of calls that all bundles make in turns; the first turn warms up."""
    opener = partial(width_turns, past=past)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(opener, setup)) for name, (_, setup) in bundles.items()}
        turns = [{name: worker() for name, worker in workers.items()} for _ in range(calls + 1)][1:]
    found = {}
    for name, (manifest, _) in bundles.items():
        times = {width: statistics.median(turn[name][width] for turn in turns) for width in turns[0][name]}
        plain = plain_width(manifest)
        steps = {width: value / times[plain] for width, value in times.items()}
        found[name] = {"plain_width": plain, "milliseconds_by_width": times, "plain_steps_by_width": steps}
    return found
