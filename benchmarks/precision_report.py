"""The rows of `benchmarks/precision.py` as tables and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import divergences
from poss_export.files import whole

Figures = Mapping[str, Any]  # of a bundle, a peer or an answer's engine, as they stand in the JSON file
Rows = Mapping[str, Sequence[Figures]]  # "bundles" and "peers"

TABLE_WIDTH = 140  # characters
NONE = "-"
OURS, PEERS = "#1f6f8b", "#d1495b"  # colours


def print_rows(rows: Rows, missing: Sequence[str], prompts: int) -> None:
    """Print the tables, then what does not fit into them."""
    console = Console(width=TABLE_WIDTH)
    console.print(cost_table(rows["bundles"]), "", speed_table(rows, missing, prompts))
    for row in rows["bundles"]:
        for source, found in row["divergences"].items():
            click.echo(divergences.line(f"{row['name']}, {source}", found))
    parted = [row["divergences"] for row in rows["bundles"]]
    answers = prompts * len(parted)
    told = divergences.totals(answers, parted, " to target-only of their bundle")
    click.echo(f"{answers} speculative answers: {told}")


def cost_table(bundles: Sequence[Figures]) -> Table:
    """Return sizes and the cost of target calls: ms by width, then plain steps by width."""
    widths = list(bundles[0]["milliseconds_by_width"])
    widths = [w for w in widths if all(w in row["milliseconds_by_width"] for row in bundles)]
    headings = ["target MB", "draft MB", *(f"{width} ms" for width in widths)]
    headings += ["plain", *(f"{width} x" for width in widths), "draft ms"]
    table = _table("target / drafter", headings, "Size; target calls by width, in ms and in plain steps")
    for row in bundles:
        times, steps = row["milliseconds_by_width"], row["plain_steps_by_width"]
        table.add_row(
            row["name"],
            *(f"{row['megabytes'][graph]:.0f}" for graph in ("target", "draft")),
            *(f"{times[width]:.1f}" for width in widths),
            str(row["plain_width"]),
            *(f"{steps[width]:.2f}" for width in widths),
            f"{row['draft_milliseconds']:.1f}",
        )
    return table


def speed_table(rows: Rows, missing: Sequence[str], prompts: int) -> Table:
    """Return quality and speed; peers that are not installed have a row too."""
    headings = ["MB", "perplexity", "KL", "top-1", "tokens/s", "range", "to first", "ratio", "tau", "equal"]
    table = _table("engine", headings, "Quality and speed")
    for row in rows["bundles"]:
        plain, drafted, sizes = row["target_only"], row["speculative"], row["megabytes"]
        cells = (*_quality_cells(row, sizes["target"]), *_speed_cells(plain, plain["to_reference"]))
        table.add_row(plain["engine"], *cells, NONE, NONE, NONE)
        table.add_row(
            drafted["engine"],
            *_quality_cells(row, sum(sizes.values())),
            *_speed_cells(drafted, drafted["to_reference"]),
            f"{drafted['ratio']:.2f}",
            f"{drafted['tau']:.2f}",
            f"{drafted['equal_answers']}/{prompts}",
        )
    for row in rows["peers"]:
        speed = _speed_cells(row["target_only"], row["to_reference"])
        table.add_row(row["name"], *_quality_cells(row, row["megabytes"]), *speed, NONE, NONE, NONE)
    for name in missing:
        table.add_row(name, "not installed")
    return table


def _table(first: str, headings: Iterable[str], title: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _quality_cells(row: Figures, megabytes: float) -> tuple[str, ...]:
    quality = row["quality"]
    perplexity, kl, agreement = (quality[name] for name in ("perplexity", "divergence", "agreement"))
    return f"{megabytes:.0f}", f"{perplexity:.2f}", f"{kl:.4f}", f"{agreement:.1%}"


def _speed_cells(figures: Figures, to_reference: float) -> tuple[str, ...]:
    speeds = figures["tokens_per_second_by_repeat"]
    speed = figures["tokens_per_second"]
    return f"{speed:.1f}", f"{min(speeds):.1f}-{max(speeds):.1f}", f"{to_reference:.2f}"


def plot_rows(path: Path, rows: Rows) -> None:
    """Write a PNG of quality against speed, target-only and speculative of a bundle joined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = []
    for row in rows["bundles"]:
        kl = row["quality"]["divergence"]
        plain, drafted = (row[mode]["tokens_per_second"] for mode in ("target_only", "speculative"))
        axes.plot([plain, drafted], [kl, kl], color=OURS, linewidth=1)
        axes.plot(plain, kl, "o", color=OURS, markerfacecolor="white")
        axes.plot(drafted, kl, "o", color=OURS)
        names.append((row["name"], max(plain, drafted), kl))
    for row in rows["peers"]:
        kl, speed = row["quality"]["divergence"], row["target_only"]["tokens_per_second"]
        axes.plot(speed, kl, "s", color=PEERS)
        names.append((row["name"], speed, kl))
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_xlim(0, 1.25 * max(speed for _, speed, _ in names))  # names stand right of their points
    axes.set_ylim(2 * max(kl for *_, kl in names) + 1e-3, -3e-4)
    axes.set(xlabel="tokens/s, greedy", ylabel="KL divergence from the first bundle, nats a token")
    axes.set_title("Quality against speed: upwards and to the right is better", fontsize=10)
    axes.grid(alpha=0.3)
    _write_names(figure, axes, names)
    _add_legend(axes)
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def _add_legend(axes: Any) -> None:
    for marker, colour, face, name in (
        ("o", OURS, "white", "ours, target-only"),
        ("o", OURS, OURS, "ours, speculative (target / drafter)"),
        ("s", PEERS, PEERS, "peers"),
    ):
        axes.plot([], [], marker, color=colour, markerfacecolor=face, label=name)
    axes.legend(frameon=False, loc="lower left")


def _write_names(figure: Any, axes: Any, names: Iterable[tuple[str, float, float]]) -> None:
    """Write each name beside its point, or above or below where something stands already."""
    figure.draw_without_rendering()  # fixes the scale, without which nothing has a place
    renderer = figure.canvas.get_renderer()
    taken = [line.get_window_extent(renderer) for line in axes.lines]
    for name, x, y in sorted(names, key=lambda each: each[1]):
        text = axes.annotate(name, (x, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
        for lines in (0, 1, -1, 2, -2, 3, -3):
            text.set_position((8, 11 * lines))
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
