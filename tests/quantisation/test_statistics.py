"""What is observed of real feeds: maxima over all of them, rows spread over them, the most extreme ones."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from poss_export.errors import InputError
from poss_export.quantisation.sites import find_sites
from poss_export.quantisation.statistics import EXTREMES, ROWS, Statistics, by_weight, observe
from tests.fixtures.graphs import Feed, Floats, make_feed, random, run, small_graph


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A graph with one site, of the name "weight#0", whose rows are the input's, negated."""
    nodes = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("MatMul", ["h", "weight"], ["y"])]
    path = tmp_path / "graph.onnx"
    onnx.save(small_graph(nodes, {"weight": random(3, 2, seed=1)}, {"x": ["n", 3]}, ["y"]), path)
    return path


def numbered(first: int, count: int) -> Floats:
    """Rows that tell their number: the second channel is it, the third is as large with a zigzag sign."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return np.stack((np.ones(count), numbers, numbers * (-1) ** numbers), axis=1).astype(np.float32)


@pytest.mark.parametrize("which", ["target", "linear", "gated", "parallel"])
def test_maxima_are_those_of_all_feeds(
    which: str, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]
) -> None:
    path = target_graph("llama", "shared") if which == "target" else draft_graph(which)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    model = onnx.load(path)
    sites = find_sites(model)
    feeds = [make_feed(model, rows, seed) for rows, seed in ((5, 0), (1, 1), (7, 2))]
    found = observe(path, iter(feeds), threads=1)
    assert found.keys() == {site.name for site in sites}
    names = sorted({site.input for site in sites} - {value.name for value in model.graph.input})
    rows: dict[str, list[Floats]] = {name: [] for name in (*names, *feeds[0])}
    for feed in feeds:
        for name, value in (*zip(names, run(model, names, **feed), strict=True), *feed.items()):
            rows[name].append(value.reshape(-1, value.shape[-1]))
    for site in sites:
        expected = np.concatenate(rows[site.input])
        np.testing.assert_allclose(found[site.name].channel_max, np.abs(expected).max(axis=0), rtol=1e-4)
        assert len(found[site.name].rows) == len(expected)
        np.testing.assert_allclose(found[site.name].rows, expected, rtol=1e-3, atol=1e-4)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("sizes", [[5000], [7] * 300, [1] * 1500, [300, 1, 2, 999, 40] * 3])
def test_rows_are_spread_evenly_and_the_largest_kept(sizes: list[int], one: Path) -> None:
    starts = np.cumsum([0, *sizes])
    total = int(starts[-1])
    feeds: list[Feed] = [{"x": numbered(a, b - a)} for a, b in pairwise(starts.tolist())]
    (found,) = observe(one, feeds, threads=1).values()
    kept = -found.rows[:, 1]
    assert ROWS / 2 < len(kept) <= ROWS
    steps = np.diff(kept)
    assert (steps > 0).all()
    assert steps.max() <= 4 * total / ROWS
    assert kept[0] == 0
    assert kept[-1] >= total - 4 * total / ROWS
    np.testing.assert_array_equal(found.channel_max, [1, total - 1, total - 1])
    assert sorted(-found.extremes[:, 1]) == list(range(total - EXTREMES, total))


def test_the_extremes_may_come_at_any_time(one: Path) -> None:
    """The largest rows come in the middle of small ones, and few rows are kept as they are."""
    feeds: list[Feed] = [{"x": numbered(0, 8)}, {"x": numbered(1000, 40)}, {"x": numbered(8, 8)}]
    (found,) = observe(one, feeds, threads=1).values()
    assert sorted(-found.extremes[:, 1]) == list(range(1008, 1040))
    assert (-found.rows[:, 1]).tolist() == [*range(8), *range(1000, 1040), *range(8, 16)]
    (alone,) = observe(one, [{"x": numbered(0, 3)}], threads=1).values()
    assert len(alone.extremes) == 3


def test_bad_feeds_are_refused(one: Path) -> None:
    spent: Iterator[Feed] = iter([{"x": numbered(0, 2)}])
    assert observe(one, spent, threads=1)
    empty: list[Feed] = []
    for none in (empty, spent):
        with pytest.raises(
            InputError, match=r"no samples: .* An iterator can be read only once; pass a list"
        ):
            observe(one, none, threads=1)
    for value in (np.nan, np.inf):
        bad = numbered(0, 4)
        bad[2, 1] = value
        with pytest.raises(InputError, match="bring a value to 'h' that is not finite: record them anew"):
            observe(one, [{"x": numbered(0, 2)}, {"x": bad}], threads=1)


def test_uses_of_one_weight_are_joined(draft_graph: Callable[..., Path]) -> None:
    model = onnx.load(draft_graph("linear"))
    sites = find_sites(model)
    single = observe(draft_graph("linear"), [make_feed(model)], threads=1)
    joined = by_weight(sites, single)
    assert joined.keys() == {site.weight for site in sites}
    uses = [single[site.name] for site in sites if site.weight == "drafting.specialists.0.q.weight"]
    assert len(uses) == 2
    whole = joined["drafting.specialists.0.q.weight"]
    np.testing.assert_array_equal(whole.channel_max, np.maximum(uses[0].channel_max, uses[1].channel_max))
    for name in ("rows", "extremes"):
        parts = [getattr(use, name) for use in uses]
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate(parts))


def test_division_is_by_channel() -> None:
    rows, scale = random(6, 3, seed=1), np.array([1, 2, 4], np.float32)
    divided: Any = Statistics(np.abs(rows).max(axis=0), rows, rows[:2]) / scale
    np.testing.assert_array_equal(divided.rows, rows / [1, 2, 4])
    np.testing.assert_array_equal(divided.extremes, rows[:2] / [1, 2, 4])
    np.testing.assert_array_equal(divided.channel_max, np.abs(rows).max(axis=0) / [1, 2, 4])
