"""The pictures of a verification's page, as SVG that can stand in it."""

import io
import re
from typing import Any

from poss_export.costs import Costs
from poss_export.evaluation.checks import Check, Verification
from poss_export.plots import COLOURS, new_figure

_LEAST = 1e-6  # share of what is allowed: smaller ones are drawn as this


def pictures(found: Verification) -> dict[str, str]:
    """Return SVG elements: `differences`, `depths`, `chances`, `gaps`, `costs`, of what there is."""
    measured = {check.name: check for check in found.checks if check.figures}
    within = [
        check for check in measured.values() if "allowed" in check.figures and "difference" in check.figures
    ]
    parted = {
        name: [one for one in check.figures["divergences"] if one["gap"] is not None]
        for name, check in measured.items()
        if "divergences" in check.figures
    }
    drawn = {"differences": _differences(within)} if within else {}
    for name, check in measured.items():
        if name.startswith("greedy"):
            drawn["depths"] = _depths(check.figures["rounds_by_depth"], check.figures["tau"])
        elif "chances" in check.figures:
            drawn["chances"] = _chances(check.figures["chances"], check.figures["allowed"])
    if parted := {name: cases for name, cases in parted.items() if cases}:
        drawn["gaps"] = _gaps(parted)
    if found.costs is not None:
        drawn["costs"] = _costs(found.costs)
    return {name: _svg(figure, name) for name, figure in drawn.items()}


def _differences(checks: list[Check]) -> Any:
    figure = new_figure(8, 0.9 + 0.28 * len(checks))
    axes = figure.add_subplot()
    shares = [_share(check) for check in checks]
    by_result = {True: COLOURS[0], False: COLOURS[1], None: "silver"}
    colours = [by_result[check.passed] for check in checks]
    axes.barh([check.name for check in checks], shares, left=_LEAST, color=colours, height=0.6)
    axes.axvline(1, color=COLOURS[1], linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, max(10, *(2 * share for share in shares)))
    axes.set_xlabel("difference, as a share of what is allowed")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return figure


def _share(check: Check) -> float:
    """Return the difference over what is allowed; where that is nothing, any difference is far beyond."""
    difference, allowed = check.figures["difference"], check.figures["allowed"]
    if difference is None:
        return 1e6
    return float(difference / allowed if allowed else 1e6 * (difference > 0))


def _depths(rounds: list[int], tau: float) -> Any:
    figure = new_figure(6, 3)
    axes = figure.add_subplot()
    depths = range(1, len(rounds))
    axes.bar(depths, [count / max(rounds[0], 1) for count in rounds[1:]], color=COLOURS[0], width=0.6)
    axes.set(xlabel="proposed tokens", ylabel="share of rounds that emitted so many", ylim=(0, 1))
    axes.set_title(f"tau {tau:.2f}: tokens emitted a round, over {rounds[0]} rounds", fontsize=10)
    axes.set_xticks(depths)
    axes.grid(axis="y", alpha=0.3)
    return figure


def _chances(chances: list[float], allowed: float) -> Any:
    figure = new_figure(6, 3.4)
    axes = figure.add_subplot()
    floor = min(allowed, min(chances)) / 10 or 1e-12
    expected = [(number + 0.5) / len(chances) for number in range(len(chances))]
    axes.plot(expected, expected, ":", color="grey", label="of a right sampler, on average")
    found = sorted(max(chance, floor) for chance in chances)
    axes.plot(expected, found, "o", color=COLOURS[0], markersize=4, label="nodes of trees, sorted")
    axes.axhline(allowed, color=COLOURS[1], linewidth=1.2, label="allowed")
    axes.set_yscale("log")
    axes.set(xlabel="share of nodes", ylabel="p of what followed a node", ylim=(floor, 2))
    axes.legend(fontsize=8, frameon=False, loc="center right")
    axes.grid(alpha=0.3)
    return figure


def _gaps(parted: dict[str, list[dict[str, Any]]]) -> Any:
    figure = new_figure(6, 3)
    axes = figure.add_subplot()
    for (name, cases), colour in zip(parted.items(), COLOURS, strict=False):
        positions, gaps = ([case[axis] for case in cases] for axis in ("position", "gap"))
        axes.plot(positions, [max(gap, 1e-9) for gap in gaps], "o", color=colour, label=name)
    axes.set_yscale("log")
    axes.set(xlabel="token of the answer", ylabel="gap of the logits there")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _costs(costs: Costs) -> Any:
    figure = new_figure(6, 3.4)
    axes = figure.add_subplot()
    for context, row, colour in zip(
        costs.contexts, costs.rounds, COLOURS * len(costs.contexts), strict=False
    ):
        axes.plot(
            costs.widths, row, "o-", markersize=3.5, color=colour, label=f"round behind {context} tokens"
        )
    if costs.rows:
        axes.axhline(costs.drafts[0], color="grey", linestyle=":", label=f"draft of {costs.rows[0]} rows")
    axes.set(xlabel="rows that are verified", ylabel="ms")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _svg(figure: Any, name: str) -> str:
    """Return an SVG element whose text is text; its ids begin with its name, so that pictures share none."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    written = buffer.getvalue()
    return re.sub(r'(\bid="|="#|url\(#)', rf"\1{name}-", written[written.index("<svg") :])
