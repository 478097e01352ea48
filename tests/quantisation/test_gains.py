"""Untied heads and gains of one compute the same; tables stay where they are looked up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from poss_export.quantisation.gains import COPY, GAIN, add_gains, untie
from poss_export.quantisation.sites import find_sites
from tests.fixtures.graphs import call, initializers


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("qwen3", False), ("linear", True)])
def test_an_untied_head_computes_the_same(
    name: str, tied: bool, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]
) -> None:
    model = onnx.load(draft_graph(name) if name == "linear" else target_graph(name, "shared"))
    outputs = ["tree_scores"] if name == "linear" else ["logits", "features"]
    before, was, sites = call(model, outputs), initializers(model), find_sites(model)
    (table,) = {site.weight for site in sites if site.role == "head"}
    untie(model, [table])
    onnx.checker.check_model(model)
    for now, then in zip(call(model, outputs), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-4)
    after = initializers(model)
    assert (table in after) == tied
    if tied:
        np.testing.assert_array_equal(after[table], was[table])
    np.testing.assert_array_equal(after[table + COPY], was[table].T)
    assert after.keys() - was.keys() == {table + COPY}
    assert was.keys() - after.keys() == (set() if tied else {table})
    new = find_sites(model)
    assert [(site.name, site.role, site.output) for site in new] == [
        (site.name, site.role, site.output) for site in sites
    ]
    assert not any(site.transposed for site in new)


def test_only_the_named_tables_are_untied(target_graph: Callable[..., Path]) -> None:
    model = onnx.load(target_graph("qwen3", "shared"))
    before = model.SerializeToString(deterministic=True)
    untie(model, [])
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", ["llama", "linear"])
def test_gains_stand_before_every_use(
    name: str, target_graph: Callable[..., Path], draft_graph: Callable[..., Path]
) -> None:
    model = onnx.load(draft_graph(name) if name == "linear" else target_graph(name, "shared"))
    outputs = ["tree_scores"] if name == "linear" else ["logits"]
    before, sites = call(model, outputs), find_sites(model)
    weight = next(site.weight for site in sites if site.role == ("fusion" if name == "linear" else "layer"))
    add_gains(model, [weight])
    onnx.checker.check_model(model)
    for now, then in zip(call(model, outputs), before, strict=True):
        np.testing.assert_array_equal(now, then)
    uses = [site for site in sites if site.weight == weight]
    scaled = [site.input for site in find_sites(model) if site.weight == weight]
    assert len(uses) > 1 or name == "llama"
    assert scaled == [site.node + GAIN for site in uses]
    assert (initializers(model)[weight + GAIN] == 1).all()
