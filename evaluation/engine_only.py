"""How long graphs take by themselves, under Polygraphy's runner, beside the sessions that the loop uses."""

import statistics
from collections.abc import Sequence
from typing import Any

from poss_export.evaluation.feeds import Call, real_calls
from poss_export.evaluation.latency import milliseconds
from poss_export.manifest import GRAPHS
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.runtime.sessions.ort import OrtOptions


def engine_times(
    bundle: Bundle, prompt_ids: Sequence[int], options: OrtOptions, repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each of `real_calls`, median milliseconds of calls that take turns.

    `polygraphy_ms`: the graph under `OnnxrtRunner`, whose caches are inputs and outputs of their own, so that
    it copies what a session writes in place. `engine_ms`: the same call in the session, the engine's share.
    `session_ms`: all of it, what the loop waits for.

    Raises:
        BackendError, InputError: as `real_calls`.
        ModuleNotFoundError: there is no Polygraphy.
    """
    return [_row(bundle, call, options, repeats) for call in real_calls(bundle, prompt_ids)]


def _row(bundle: Bundle, call: Call, options: OrtOptions, repeats: int) -> dict[str, Any]:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    session = bundle.target if call.graph == "target" else bundle.drafter
    assert session is not None
    polygraphy, engine, whole = [], [], []
    with OnnxrtRunner(lambda: load_graph(bundle.folder / GRAPHS[call.graph], options)) as runner:
        for repeat in range(-1, repeats):  # the first turn warms up
            runner.infer(dict(call.feed))
            before = session.engine_seconds
            took = milliseconds(call.again)
            if repeat >= 0:
                polygraphy.append(1000 * runner.last_inference_time())
                engine.append(1000 * (session.engine_seconds - before))
                whole.append(took)
    times = {"polygraphy_ms": polygraphy, "engine_ms": engine, "session_ms": whole}
    rows = call.feed["input_ids" if call.graph == "target" else "features"].shape[1]
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {"call": call.name, "graph": call.graph, "rows": rows, **medians, "repeats": repeats}
