"""The picture of a training run: how losses and acceptance went, and what the drafter is worth."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from poss_export.files import whole


def plot_training(path: Path, record: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG: losses and acceptance over row-steps from the log, acceptance by depth from the record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, learning, final = figure.subplots(1, 3)
    done = [entry["done"] / 1e6 for entry in log]
    losses.plot(done, [entry["token_loss"] for entry in log], label="token loss, nats")
    losses.plot(done, [entry["feature_loss"] for entry in log], label="feature loss")
    losses.set(title="Training losses", xlabel="million row-steps")
    losses.legend()
    for depth, rates in enumerate(zip(*(entry["alpha"] for entry in log), strict=True), start=1):
        learning.plot(done, rates, label=f"depth {depth}")
    learning.set(title="Acceptance on held-out dialogues", xlabel="million row-steps", ylim=(0, 1))
    learning.legend(ncols=2, fontsize="small")
    for axes in (losses, learning):
        _mark_stages(axes, log)
        axes.grid(alpha=0.3)
    held_out = record["held_out"]
    depths = range(1, len(held_out["alpha"]) + 1)
    bars = final.bar(list(depths), held_out["alpha"])
    final.bar_label(bars, fmt="%.2f")
    taus = ", ".join(f"{nodes} nodes {tau:.2f}" for nodes, tau in held_out["tree_tau"].items())
    final.set(title="Acceptance by depth, finished", xlabel=f"chain tau {held_out['chain_tau']:.2f}\n{taus}")
    final.set_ylim(0, 1)
    figure.suptitle(f"{record['options']['preset']} for {record['target']}")
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _mark_stages(axes: Any, log: Sequence[Mapping[str, Any]]) -> None:
    for before, after in pairwise(log):
        if before["stage"] != after["stage"]:
            axes.axvline(after["done"] / 1e6, color="grey", linestyle=":")
