"""Pictures for people, drawn by matplotlib (extra `plot`)."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poss_export.errors import InputError

_COLOURS = ("#1f6f8b", "#d1495b", "#5b8c5a", "#edae49")


def check_plot(path: Path) -> None:
    """Raise InputError where no picture can be drawn to `path`."""
    check_library()
    if path.suffix.lower() != ".png":
        raise InputError(f"the plot is {str(path)!r}; name a file that ends in .png")
    if not path.parent.is_dir():
        raise InputError(f"no folder {str(path.parent)!r} for the plot; make it first")


def check_library() -> None:
    """Raise InputError where no picture can be drawn at all."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which is not installed: pip install 'poss-export[plot]'")


def plot_profile(profile: Mapping[str, Any], path: Path) -> None:
    """Draw a report of `poss-export profile` to `path`: latency of target calls against their width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    contexts = sorted({row["context"] for row in profile["verify"]})
    for context, colour in zip(contexts, _COLOURS * len(contexts), strict=False):
        rows = sorted(
            (row for row in profile["verify"] if row["context"] == context), key=lambda row: row["width"]
        )
        widths = [row["width"] for row in rows]
        axes.fill_between(
            widths,
            [row["p10_ms"] for row in rows],
            [row["p90_ms"] for row in rows],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        medians = [row["median_ms"] for row in rows]
        axes.plot(widths, medians, "o-", color=colour, label=f"target call, context {context}")
        for row in [row for row in profile["draft"] if row["context"] == context][:1]:
            label = f"draft round, context {context}"
            axes.axhline(row["median_ms"], color=colour, linestyle=":", linewidth=1.2, label=label)
        for row in [row for row in profile["round"] if row["context"] == context]:
            label = f"whole round, context {context}"
            axes.plot(row["width"], row["median_ms"], "D", color=colour, markerfacecolor="white", label=label)
    engine = profile["engine"]
    axes.set_title(
        f"{profile['target']['name']}, {profile['precision']}, {engine['backend']} {engine['version']}\n"
        f"{engine['device']}",
        fontsize=10,
    )
    axes.set_xlabel("width: tokens in a target call")
    axes.set_ylabel("latency in ms: median, shaded 10th to 90th percentile")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row["width"] for row in profile["verify"]}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
