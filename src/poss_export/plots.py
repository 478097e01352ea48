"""Pictures for people, drawn by matplotlib (extra `plot`)."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poss_export.acceptance import AcceptanceCurves, DepthCurve
from poss_export.errors import InputError
from poss_export.files import check_file, whole

_SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
_KINDS = 7  # of node that have a colour of their own
COLOURS = ("#1f6f8b", "#d1495b", "#5b8c5a", "#edae49")


def check_plot(path: Path) -> None:
    """Raise InputError where no picture can be drawn to `path`."""
    check_library()
    if path.suffix.lower() != ".png":
        raise InputError(f"the plot is {str(path)!r}; name a file that ends in .png")
    check_file(path)


def check_library() -> None:
    """Raise InputError where no picture can be drawn at all."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib, which is not installed: pip install 'poss-export[plot]'")


def plot_profile(profile: Mapping[str, Any], path: Path) -> None:
    """Draw a report of `poss-export profile` to `path`: latency of target calls against their width."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    contexts = sorted({row["context"] for row in profile["verify"]})
    for context, colour in zip(contexts, COLOURS * len(contexts), strict=False):
        _plot_context(axes, profile, context, colour)
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
    _save(figure, path)


def _plot_context(axes: Any, profile: Mapping[str, Any], context: int, colour: str) -> None:
    """Draw what was measured behind `context` tokens."""
    verify, draft, whole = (
        [row for row in profile[kind] if row["context"] == context] for kind in ("verify", "draft", "round")
    )
    verify.sort(key=lambda row: row["width"])
    widths, low, medians, high = (
        [row[name] for row in verify] for name in ("width", "p10_ms", "median_ms", "p90_ms")
    )
    axes.fill_between(widths, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(widths, medians, "o-", color=colour, label=f"target call, context {context}")
    for row in draft[:1]:
        label = f"draft round, context {context}"
        axes.axhline(row["median_ms"], color=colour, linestyle=":", linewidth=1.2, label=label)
    for row in whole:
        label = f"whole round, context {context}"
        axes.plot(row["width"], row["median_ms"], "D", color=colour, markerfacecolor="white", label=label)


def plot_layers(calls: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a report of `profile_layers` to `path`: a bar a call, its kinds of node stacked."""
    figure = new_figure(9, 1.5 + len(calls))
    axes = figure.add_subplot()
    names = [f"{call['call']}\n{call['rows']} rows" for call in calls]
    kinds = {kind for call in calls for kind in call["kinds"]}
    shown = sorted(kinds, key=lambda kind: -max(call["kinds"].get(kind, 0.0) for call in calls))[:_KINDS]
    left = [0.0] * len(calls)
    for kind in (*shown, "others"):
        meant = kinds.difference(shown) if kind == "others" else {kind}
        widths = [sum(ms for name, ms in call["kinds"].items() if name in meant) for call in calls]
        axes.barh(names, widths, left=left, label=kind)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds: each node's shortest time, summed")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def plot_acceptance(acceptance: AcceptanceCurves, path: Path) -> None:
    """Draw an acceptance calibration to `path`: reliability by depth."""
    depths = acceptance.depths
    columns = min(len(depths), 3)
    rows = -(-len(depths) // columns)
    figure = new_figure(1 + 3 * columns, 1.3 + 2.8 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, curve in zip(grid, depths, strict=False):
        _plot_depth(axes, curve)
    for axes in grid[len(depths) :]:
        axes.set_axis_off()
    for axes in grid[max(len(depths) - columns, 0) :]:
        axes.tick_params(labelbottom=True)  # also above a place that stays empty
    figure.supxlabel("probability that the drafter gives to a node", fontsize=10)
    figure.supylabel("share of such nodes that were accepted", fontsize=10)
    figure.suptitle(
        f"{acceptance.drafter_name} for {acceptance.target_name}, {acceptance.precision}: "
        f"{acceptance.dialogues} dialogues, {acceptance.rounds} rounds",
        fontsize=10,
    )
    grid[0].legend(loc="upper left", fontsize=7, frameon=False)
    _save(figure, path)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def _plot_depth(axes: Any, curve: DepthCurve) -> None:
    bins = curve.bins
    shares = [item.accepted for item in bins]
    below = [item.accepted - item.low for item in bins]
    above = [item.high - item.accepted for item in bins]
    axes.plot([0, 1], [0, 1], ":", color="grey", linewidth=1, label="drafter is right")
    axes.plot(
        [0, *curve.probabilities, 1],
        [curve.chances[0], *curve.chances, curve.chances[-1]],
        color=COLOURS[1],
        linewidth=1.2,
        label="monotone fit",
    )
    axes.errorbar(
        [item.predicted for item in bins],
        shares,
        [below, above],
        fmt="o",
        markersize=3.5,
        color=COLOURS[0],
        elinewidth=1,
        label="observed, 95 % interval",
    )
    axes.set_title(
        f"depth {curve.depth}, {curve.nodes:,} nodes\n"
        f"calibration error {curve.before.ece:.3f}, fitted {curve.after.ece:.3f}",
        fontsize=8,
    )
    # Most nodes are improbable: a root spreads them and leaves the diagonal straight.
    axes.set_xscale("function", functions=(_root, _square))
    axes.set_yscale("function", functions=(_root, _square))
    labels = [f"{share:g}" for share in _SHARES]
    axes.set(xlim=(0, 1), xticks=_SHARES, xticklabels=labels, ylim=(0, 1), yticks=_SHARES, yticklabels=labels)
    axes.tick_params(labelsize=7)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)


def _root(values: Any) -> Any:
    return abs(values) ** 0.5


def _square(values: Any) -> Any:
    return values**2
