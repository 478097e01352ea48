"""The rows of `benchmarks/drafters.py` as a table and as a picture."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import divergences
from benchmarks.contestants import BASELINE
from poss_export.files import whole

Row = dict[str, Any]  # of the table, as it stands in the JSON file

TABLE_WIDTH = 200  # characters: in fewer, rich cuts figures
NONE = "-"
MARKERS = "osD^v<>Pp*XhH8"


def print_rows(rows: Sequence[Row], target_parameters: int) -> None:
    """Print the table, then what does not fit into it."""
    Console(width=TABLE_WIDTH).print(row_table(rows, target_parameters))
    for row in rows:
        if row["training"] and (start := row["training"]["started_from"]):
            click.echo(f"{row['drafter']} started from {start}, whose training is not counted")
    for row in rows:
        for place, found in row["divergences"].items():
            click.echo(divergences.line(f"{row['drafter']}, {place}", found))
    answers = sum(row["answers"] for row in rows)
    told = divergences.totals(answers, (row["divergences"] for row in rows), f" to {BASELINE}")
    click.echo(f"{answers} answers: {told}")


def row_table(rows: Sequence[Row], target_parameters: int) -> Table:
    """Return the rows, that of the target alone first; its times are medians of those beside each drafter."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    depths = max(len(row["acceptance"]) for row in rows)
    trees = [figures["tree"] for figures in rows[0]["trees"]]
    headings = [
        "drafter",
        "parameters",
        "trained",
        "row-steps",
        "rows",
        *(f"d{d + 1}" for d in range(depths)),
    ]
    headings += ["chain", *trees, "draft ms", "verify ms", "tokens/s", "ratio", "equal"]
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "drafter" else "right")
    alone = [row["speed"][BASELINE] for row in rows]
    step, speed = (
        statistics.median(a[name] for a in alone) for name in ("milliseconds", "tokens_per_second")
    )
    taus = ["1.00"] * (1 + len(trees))
    empty = [NONE] * (3 + depths)
    times = [NONE, f"{step:.1f}", f"{speed:.1f}", "1.00", NONE]
    table.add_row(BASELINE, _millions(target_parameters), *empty, *taus, *times)
    for row in rows:
        table.add_row(*_cells(row, depths))
    return table


def _cells(row: Row, depths: int) -> Iterable[str]:
    training, speed = row["training"] or {}, row["speed"]
    seconds = training.get("seconds")
    rates = [*row["acceptance"], *[None] * depths][:depths]
    return (
        row["drafter"],
        _millions(row["parameters"]),
        NONE if seconds is None else f"{seconds / 60:.0f} min",
        _millions(training.get("row_steps")),
        _millions(training.get("rows")),
        *(NONE if rate is None else f"{rate:.3f}" for rate in rates),
        *(f"{figures['tau']:.2f}" for figures in (row["chain"], *row["trees"])),
        *(f"{speed['milliseconds'][part]:.1f}" for part in ("draft", "target")),
        f"{speed['tokens_per_second']:.1f}",
        f"{speed['ratio']:.2f}",
        f"{row['answers'] - len(row['divergences'])}/{row['answers']}",
    )


def _millions(count: int | None) -> str:
    return NONE if count is None else f"{count / 1e6:.2f} M"


def plot_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG: acceptance by depth, a curve a drafter; tau of chain and trees, a row each."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3 + 0.3 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for index, row in enumerate(rows):
        depths = range(1, len(row["acceptance"]) + 1)
        rates = [float("nan") if rate is None else rate for rate in row["acceptance"]]
        style = {"marker": MARKERS[index % len(MARKERS)], "color": colors[index % len(colors)]}
        left.plot(list(depths), rates, label=row["drafter"], **style)
    left.set(title="Acceptance of a chain, given the depth before", xlabel="depth")
    figure.legend(*left.get_legend_handles_labels(), loc="outside left upper")
    shapes = ["chain", *(figures["tree"] for figures in rows[0]["trees"])]
    for index, shape in enumerate(shapes):
        taus = [(row["chain"], *row["trees"])[index]["tau"] for row in rows]
        right.scatter(taus, range(len(rows)), marker=MARKERS[index % len(MARKERS)], label=shape)
    right.set_yticks(range(len(rows)), [row["drafter"] for row in rows])
    right.invert_yaxis()
    right.set(title="Tokens a round (tau)", xlabel="tau")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=len(shapes))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with whole(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
