"""How long the calls of a bundle's engines take, measured through the sessions that the loop uses.

`docs/engines.md` defines the report. Everything of one context length takes turns, so that a slow moment of
the machine hits all alike; a first turn, not counted, warms up.
"""

import time
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from poss_export.errors import InputError
from poss_export.machine import peak_memory
from poss_export.progress import Report, silent
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.loop import advance
from poss_export.runtime.planning.measure import read_context
from poss_export.runtime.sampling import GREEDY
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import DraftSession, Ints, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

VERSION = 1  # of the report
WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
CONTEXTS = (128, 1024)
_MEDIAN_WIDTHS = (1, 2, 4, 8, 16, 32)
_MEDIAN_REPEATS = 9

Milliseconds = list[float]


def target_times(
    target: TargetSession, vocab: int, context: int, widths: Iterable[int], repeats: int
) -> dict[int, Milliseconds]:
    """Return the times of target calls of each width behind `context` tokens, every node's logits wanted."""
    return _take_turns(target_calls(target, vocab, context, widths), repeats)


def target_calls(
    target: TargetSession, vocab: int, context: int, widths: Iterable[int]
) -> dict[int, Callable[[], Any]]:
    """Return the calls that `target_times` times; `context` tokens are read now."""
    _fill(target, None, _tokens(vocab, context))
    return {width: partial(target.forward, DraftTree.chain(_tokens(vocab, width))) for width in widths}


def milliseconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def median_times(bundle: Bundle) -> dict[str, Any]:
    """Return median ms of target calls by width, and of a draft round and the whole round around it."""
    capacity, drafter = bundle.target.capacity, bundle.manifest.drafter
    widths = [width for width in _MEDIAN_WIDTHS if width < capacity]
    most = max(widths) if drafter is None else max(*widths, drafter.tree.width)  # in one call
    context = max(min(CONTEXTS[0], capacity - most), 1)
    vocab = bundle.manifest.target.config.vocab_size
    times = target_times(bundle.target, vocab, context, widths, _MEDIAN_REPEATS)
    found: dict[str, Any] = {"target": {str(width): _median(ms) for width, ms in times.items()}}
    if bundle.drafter is not None and drafter is not None:
        ids, depth = _tokens(vocab, context), drafter.tree.depth
        draft, whole = round_times(bundle.target, bundle.drafter, ids, depth, _MEDIAN_REPEATS)
        found |= {"draft": _median(draft[1]), "round": _median(whole)}
    return found


def profile_bundle(
    bundle: Bundle,
    *,
    widths: abc.Sequence[int] | None = None,
    contexts: abc.Sequence[int] | None = None,
    repeats: int = 20,
    report: Report = silent,
) -> dict[str, Any]:
    """Measure the entered `bundle`; return the report but for `engine`, as plain JSON values.

    Args:
        bundle: every session is emptied.
        widths: of the target calls, in tokens; None takes those of `WIDTHS` that fit, and the tree's.
        contexts: committed tokens before each call; None takes those of `CONTEXTS` that fit.
        repeats: calls of each kind; a quarter as many prompts.
        report: told what begins.

    Raises:
        InputError: a width or a context does not fit the capacity, or a number is below 1.
    """
    widths = _widths(widths, bundle)
    contexts = _contexts(contexts, max(widths), bundle.manifest.capacity)
    if (least := min((*widths, *contexts, repeats))) < 1:
        raise InputError(f"widths, contexts and repeats must be at least 1, not {least}")
    found: dict[str, list[dict[str, Any]]] = {"prefill": [], "verify": [], "draft": [], "round": []}
    for context in contexts:
        report(f"measuring behind {context} tokens")
        for call, rows in _profile_behind(bundle, context, widths, repeats).items():
            found[call] += rows
    return {"profile_version": VERSION, **_facts(bundle), **found, "memory": _memory(bundle)}


def _profile_behind(
    bundle: Bundle, context: int, widths: abc.Sequence[int], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the report's rows of each kind of call behind `context` tokens."""
    vocab, drafter = bundle.manifest.target.config.vocab_size, bundle.manifest.drafter
    ids = _tokens(vocab, context)
    reads = _take_turns({"prompt": partial(_fill, bundle.target, None, ids)}, max(repeats // 4, 1))
    by_width = target_times(bundle.target, vocab, context, widths, repeats)
    found = {
        "prefill": [_rate(_row(context, reads["prompt"], tokens=context), "tokens")],
        "verify": [_rate(_row(context, times, width=width), "width") for width, times in by_width.items()],
    }
    if bundle.drafter is None or drafter is None:
        return found
    draft, whole = round_times(bundle.target, bundle.drafter, ids, drafter.tree.depth, repeats)
    return {
        **found,
        "draft": [_row(context, times, rows=rows) for rows, times in draft.items()],
        "round": [_row(context, whole, width=drafter.tree.width, rows=1)],
    }


def round_times(
    target: TargetSession, drafter: DraftSession, ids: Ints, depth: int, repeats: int
) -> tuple[dict[int, Milliseconds], Milliseconds]:
    """Return the times of drafting, by new rows, and of whole rounds whose drafter reads one new row."""
    sequence = _fill(target, drafter, ids)
    t, f = sequence.take_unread()  # one new row
    read = drafter.length()

    def propose(rows: int) -> None:
        drafter.trim(read)
        drafter.propose(np.resize(ids, rows), np.resize(f, (rows, f.shape[1])))

    def whole_round() -> None:
        target.trim(len(ids))
        drafter.trim(read)
        sequence.keep(t, f)
        advance(target, drafter, sequence)
        sequence.take_unread()

    calls: dict[Any, Callable[[], Any]] = {rows: partial(propose, rows) for rows in (1, depth + 1)}
    times = _take_turns({**calls, "round": whole_round}, repeats)
    return {rows: times[rows] for rows in calls}, times["round"]


def _fill(target: TargetSession, drafter: DraftSession | None, ids: Ints) -> Sequence:
    """Return a sequence whose prompt is `ids`, read as `read_context` does."""
    sequence = Sequence(ids, verifier(GREEDY))
    read_context(target, drafter, sequence)
    return sequence


def _take_turns(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, Milliseconds]:
    times: dict[Any, Milliseconds] = {name: [] for name in calls}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            took = milliseconds(call)
            if repeat >= 0:
                times[name].append(took)
    return times


def _median(times: Milliseconds) -> float:
    return round(float(np.median(times)), 3)


def _row(context: int, times: Milliseconds, **sizes: int) -> dict[str, Any]:
    median, low, high = (float(np.percentile(times, share)) for share in (50, 10, 90))
    spread = {"median_ms": median, "p10_ms": low, "p90_ms": high, "repeats": len(times)}
    return {"context": context, **sizes, **{name: round(value, 4) for name, value in spread.items()}}


def _rate(row: dict[str, Any], size: str) -> dict[str, Any]:
    return {**row, "tokens_per_second": round(1000 * row[size] / row["median_ms"], 2)}


def _widths(widths: abc.Sequence[int] | None, bundle: Bundle) -> list[int]:
    if widths is None:
        tree = [] if bundle.manifest.drafter is None else [bundle.manifest.drafter.tree.width]
        widths = [width for width in (*WIDTHS, *tree) if width < bundle.manifest.capacity]
    return sorted(set(widths))


def _contexts(contexts: abc.Sequence[int] | None, width: int, capacity: int) -> abc.Sequence[int]:
    fitting = [context for context in contexts or CONTEXTS if context + width <= capacity]
    if contexts is None:
        return fitting or [max(capacity - width, 1)]
    if len(fitting) < len(contexts):
        raise InputError(
            f"contexts {list(contexts)} with calls of {width} tokens do not all fit the capacity "
            f"{capacity}: ask for shorter contexts or narrower widths"
        )
    return contexts


def _tokens(vocab: int, count: int) -> Ints:
    return np.random.default_rng(0).integers(0, vocab, count)


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    drafter = manifest.drafter
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": {"name": manifest.target.name, "sha256": manifest.target.sha256},
        "drafter": None if drafter is None else {"name": drafter.name, "sha256": drafter.sha256},
        "tree": None if drafter is None else vars(drafter.tree),
        "precision": manifest.label("target"),
        "draft_precision": None if drafter is None else manifest.label("draft"),
        "cache_form": manifest.cache_form,
        "capacity": manifest.capacity,
    }


def _memory(bundle: Bundle) -> dict[str, int | None]:
    """Return bytes: of the process at its peak, and of each graph's caches."""
    sizes = {
        f"{graph}_caches": contract.cache_bytes(bundle.manifest.capacity)
        for graph, contract in contracts_of(bundle.manifest).items()
    }
    return {"process_peak": peak_memory(), **sizes}
