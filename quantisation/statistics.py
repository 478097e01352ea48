"""What reaches the weights of a graph: observed once, on real feeds, for every later decision."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from poss_export.calibration.replay import Feed
from poss_export.errors import InputError
from poss_export.quantisation.sites import Site, find_sites
from poss_export.runtime.sessions.load_graph import load_graph
from poss_export.runtime.sessions.ort import OrtOptions

Floats = NDArray[np.float32]

ROWS = 512  # kept of each site
EXTREMES = 32  # kept beside them: the rows that a range may cut off


@dataclass(frozen=True)
class Statistics:
    """The rows that reached one site, `[any, K]`.

    channel_max: `[K]`, the largest magnitude of each channel over all rows. rows: `[n, K]`, at most `ROWS`
    spread evenly over all feeds. extremes: `[n, K]`, the `EXTREMES` rows with the largest values.
    """

    channel_max: Floats
    rows: Floats
    extremes: Floats

    @property
    def spread(self) -> float:
        """The root mean square of a typical row: few rows may be a thousand times as large."""
        return float(np.median(np.sqrt(np.square(self.rows).mean(axis=1))))

    def __truediv__(self, scale: Floats) -> "Statistics":
        """Return the statistics of rows divided by `scale` `[K]`."""
        return Statistics(self.channel_max / scale, self.rows / scale, self.extremes / scale)

    def __or__(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both together."""
        return Statistics(
            np.maximum(self.channel_max, other.channel_max),
            np.concatenate((self.rows, other.rows)),
            np.concatenate((self.extremes, other.extremes)),
        )


def observe(graph: Path, feeds: Iterable[Feed], threads: int | None = None) -> dict[str, Statistics]:
    """Run the graph on every feed and return the statistics of each site, by `Site.name`.

    Raises:
        InputError: there are no feeds, or a value that reaches a site is not finite.
    """
    model = onnx.load(graph, load_external_data=False)
    sites = find_sites(model)
    collectors = {name: _Collector() for name in sorted({site.input for site in sites})}
    computed = sorted(collectors.keys() - {value.name for value in model.graph.input})
    unwanted = [value for value in model.graph.output if value.name not in computed]
    for value in unwanted:  # what only they need is not computed
        model.graph.output.remove(value)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in given)
    session = load_graph(model.SerializeToString(), OrtOptions(threads=threads), graph.parent)
    for feed in feeds:
        values = {**feed, **dict(zip(computed, session.run(computed, dict(feed)), strict=True))}
        for name, collector in collectors.items():
            rows = values[name]
            collector.add(rows.reshape(-1, rows.shape[-1]).astype(np.float32, copy=False), name)
    return {site.name: collectors[site.input].statistics() for site in sites}


class _Collector:
    """Gathers the rows of one tensor over all feeds without keeping them all."""

    def __init__(self) -> None:
        self.channel_max: Floats | None = None
        self.extremes: Floats | None = None
        self.others: list[Floats] = []
        self.stride = 1  # every so many rows is kept
        self.seen = 0

    def add(self, rows: Floats, name: str) -> None:
        magnitude = np.abs(rows)
        if not np.isfinite(magnitude).all():
            raise InputError(
                f"the samples bring a value to {name!r} that is not finite: record them anew, from a target "
                "whose outputs are finite"
            )
        largest = magnitude.max(axis=0)
        if self.channel_max is None or self.extremes is None:
            self.channel_max, self.extremes = largest, rows[:0]
        self.channel_max = np.maximum(self.channel_max, largest)
        candidates = np.concatenate((self.extremes, rows))
        order = np.argsort(-np.abs(candidates).max(axis=1), kind="stable")[:EXTREMES]
        self.extremes = candidates[order]
        first = -self.seen % self.stride
        self.others.append(rows[first :: self.stride].copy())
        self.seen += len(rows)
        if sum(map(len, self.others)) > 2 * ROWS:  # keep every other row of what was kept
            self.others = [np.concatenate(self.others)[::2]]
            self.stride *= 2

    def statistics(self) -> Statistics:
        if self.channel_max is None or self.extremes is None:
            raise InputError(
                "no samples: the feeds gave none. An iterator can be read only once; pass a list, or a record"
            )
        others = np.concatenate(self.others)
        evenly = np.linspace(0, len(others) - 1, min(len(others), ROWS)).astype(int)
        return Statistics(self.channel_max, others[evenly], self.extremes)


def by_weight(sites: Iterable[Site], statistics: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Return the statistics of all uses of a weight together, by the weight's name."""
    found: dict[str, Statistics] = {}
    for site in sites:
        new = statistics[site.name]
        found[site.weight] = found[site.weight] | new if site.weight in found else new
    return found
