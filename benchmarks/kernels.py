"""Where the time of a call goes: ms by kind of node, of the target by width and of the draft round.

    python -m benchmarks.kernels BUNDLE --threads 1

Every figure is a sum of minima (`evaluation/layers.py`). The floor is what reading the weights would take.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.call_costs import WIDTHS
from poss_export.evaluation.layers import Nodes, by_kind, draft_nodes, target_nodes, weight_bytes
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, Manifest, read_manifest

_READ, _PIECES = 2**29, 64  # bytes that the bandwidth is measured with, and the parts of each thread
_SHOWN = 12  # kinds of node in a table; the others are one row

Kinds = dict[str, float]  # ms by kind of node
# measure(bundle, past, tokens of each call, repeats, threads) -> of each call
Measure = Callable[[Path, int, Sequence[int], int, int | None], list[Nodes]]


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
        "target": (TARGET_GRAPH, list(WIDTHS), target_nodes)
    }
    if manifest.drafter is not None:
        measured["draft"] = (DRAFT_GRAPH, [1, manifest.drafter.tree.depth + 1], draft_nodes)
    for name, (graph, columns, measure) in measured.items():
        kinds = [by_kind(nodes) for nodes in measure(folder, past, columns, repeats, threads)]
        floor = 1000 * sum(weight_bytes(folder / graph).values()) / speed
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
