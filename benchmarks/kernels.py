"""Where the time of a call goes: ms by kind of node, of the target by width and of the draft round.

    python -m benchmarks.kernels BUNDLE --threads 1

Every figure is a sum of minima: each node's shortest time over the repeats, because a node of some
microseconds is seldom disturbed, a whole call on a busy machine always. The floor is what reading the
weights would take.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.call_costs import WIDTHS
from poss_export.evaluation.latency import target_calls
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, Manifest, read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession

_READ, _PIECES = 2**29, 64  # bytes that the bandwidth is measured with, and the parts of each thread
_SHOWN = 12  # kinds of node in a table; the others are one row

Kinds = dict[str, float]  # ms by kind of node
# measure(bundle, past, tokens of each call, repeats, threads) -> of each call
Measure = Callable[[Path, int, Sequence[int], int, int], list[Kinds]]


def target_kinds(folder: Path, past: int, widths: Sequence[int], repeats: int, threads: int) -> list[Kinds]:
    """Return what kinds of node take in target calls behind `past` tokens, every node's logits wanted."""
    manifest = read_manifest(folder)
    contract, vocab = contracts_of(manifest)["target"], manifest.target.config.vocab_size
    with TemporaryDirectory() as temporary:
        options = OrtOptions(threads=threads, profile=str(Path(temporary) / "target"))
        with OrtTargetSession(folder / TARGET_GRAPH, contract, manifest.capacity, options) as target:
            calls = list(target_calls(target, vocab, past, widths).values())
            _repeat(calls, repeats)
        return _kinds(Path(temporary), len(calls), repeats)


def draft_kinds(folder: Path, past: int, rows: Sequence[int], repeats: int, threads: int) -> list[Kinds]:
    """Return what kinds of node take in a draft round that reads so many new rows behind `past`."""
    manifest = read_manifest(folder)
    table = manifest.target.embedding.open(folder)
    contract, capacity = contracts_of(manifest)["draft"], manifest.capacity
    with TemporaryDirectory() as temporary:
        options = OrtOptions(threads=threads, profile=str(Path(temporary) / "draft"))
        with OrtDraftSession(folder / DRAFT_GRAPH, contract, capacity, options, table) as drafter:
            calls = [partial(_propose, drafter, table, past, count) for count in rows]
            drafter.propose(*_new_rows(table, past))
            _repeat(calls, repeats)
        return _kinds(Path(temporary), len(calls), repeats)


def _new_rows(table: Any, count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    features = random.standard_normal((count, table.shape[1])).astype(table.dtype)
    return random.integers(0, len(table), count), features


def _propose(drafter: OrtDraftSession, table: Any, past: int, count: int) -> None:
    drafter.trim(past)
    drafter.propose(*_new_rows(table, count))


def _repeat(calls: Sequence[Callable[[], Any]], repeats: int) -> None:
    for _ in range(repeats + 1):  # the first turn warms up
        for call in calls:
            call()


def _kinds(folder: Path, calls: int, repeats: int) -> list[Kinds]:
    """Return, for each of the calls that took turns, its ms by kind of node, from the profile in `folder`."""
    (profile,) = folder.iterdir()
    runs = _runs(json.loads(profile.read_text(encoding="utf-8")))[-calls * repeats :]
    found = []
    for number in range(calls):
        kinds = defaultdict[str, float](float)
        for kind, least in _least(runs[number::calls]).values():
            kinds[kind] += least
        found.append(dict(kinds))
    return found


def _runs(events: list[dict[str, Any]]) -> list[dict[str, tuple[str, float]]]:
    """Return the kind and the ms of each node, for each run of the graph."""
    runs, nodes = [], dict[str, tuple[str, float]]()
    for event in sorted(events, key=lambda event: event["ts"] + event.get("dur", 0)):
        if event["name"].endswith("_kernel_time"):
            nodes[event["name"]] = event["args"]["op_name"], event["dur"] / 1000
        elif event["name"] == "model_run":
            runs.append(nodes)
            nodes = {}
    return runs


def _least(runs: Sequence[dict[str, tuple[str, float]]]) -> dict[str, tuple[str, float]]:
    return {name: (kind, min(run[name][1] for run in runs)) for name, (kind, _) in runs[0].items()}


def weight_bytes(graph: Path) -> int:
    """Return the bytes of weights that a call multiplies by, those read several times as often."""
    model = onnx.load(graph, load_external_data=False).graph
    sizes = {
        tensor.name: math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.initializer
    }
    products = [node for node in model.node if "MatMul" in node.op_type or node.op_type == "Gemm"]
    return sum(sizes.get(name, 0) for node in products for name in node.input[1:])


def bandwidth(threads: int, repeats: int = 5) -> float:
    """Return the bytes per second at which threads read memory, by the shortest time of each piece."""
    pieces = np.ones((threads, _PIECES, _READ // 4 // threads // _PIECES), np.float32)
    times = np.full((repeats, threads, _PIECES), np.inf)

    def read(thread: int) -> None:
        for repeat in range(repeats):
            for piece, values in enumerate(pieces[thread]):
                start = time.perf_counter()
                values.max()
                times[repeat, thread, piece] = time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    return float(pieces.nbytes / times.min(axis=0).sum(axis=1).max())


def kinds_table(title: str, columns: Sequence[int], kinds: Sequence[Kinds], floor: float) -> Table:
    """Return a table of the kinds that take most, the widest call's first; `floor` in ms."""
    table = Table(box=None, title=title)
    for heading in ("node", *map(str, columns)):
        table.add_column(heading, no_wrap=True)
    most = sorted(kinds[-1], key=lambda kind: -kinds[-1][kind])
    rows = {kind: [call[kind] for call in kinds] for kind in most[:_SHOWN]}
    rows["others"] = [sum(call[kind] for kind in most[_SHOWN:]) for call in kinds]
    rows["all nodes"] = [sum(call.values()) for call in kinds]
    rows["floor"] = [floor for _ in kinds]
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    return table


def _report(folder: Path, manifest: Manifest, past: int, repeats: int, threads: int) -> dict[str, Any]:
    speed = bandwidth(threads)
    console = Console()
    found: dict[str, Any] = {"bandwidth": speed}
    measured: dict[str, tuple[str, list[int], Measure]] = {
        "target": (TARGET_GRAPH, list(WIDTHS), target_kinds)
    }
    if manifest.drafter is not None:
        measured["draft"] = (DRAFT_GRAPH, [1, manifest.drafter.tree.depth + 1], draft_kinds)
    for name, (graph, columns, measure) in measured.items():
        kinds = measure(folder, past, columns, repeats, threads)
        floor = 1000 * weight_bytes(folder / graph) / speed
        console.print(kinds_table(f"{name}, ms by tokens", columns, kinds, floor))
        found[name] = {"floor": floor, "kinds": dict(zip(columns, kinds, strict=True))}
    return found


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--past", default=128, show_default=True, help="Tokens in the caches.")
@click.option("--repeats", default=20, show_default=True, help="Calls of each width.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(bundle: Path, past: int, repeats: int, threads: int, report: Path | None) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    found = _report(bundle, read_manifest(bundle), past, repeats, threads)
    click.echo(
        f"{found['bandwidth'] / 1e9:.1f} GB/s read; {threads} threads, {machine['processor']}; "
        f"load average before {machine['load_average']}"
    )
    if report is not None:
        environment.write(report, machine, found)


if __name__ == "__main__":
    environment.run(main)
