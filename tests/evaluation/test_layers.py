"""Where the time of a call goes: from ONNX Runtime's own profile."""

from pathlib import Path

import pytest

from poss_export.evaluation.layers import by_kind, draft_nodes, profile_layers, target_nodes
from poss_export.manifest import TARGET_GRAPH


def test_nodes_of_the_target_by_width(tiny_bundle: Path) -> None:
    one, four = target_nodes(tiny_bundle, past=8, widths=(1, 4), repeats=2, threads=1)
    assert set(one) == set(four)
    kinds = by_kind(one)
    assert {"MatMul", "GroupQueryAttention", "FusedMatMul"} <= set(kinds)
    assert [*kinds.values()] == sorted(kinds.values(), reverse=True)
    assert sum(kinds.values()) == pytest.approx(sum(node.milliseconds for node in one.values()))
    weights = sum(node.weights for node in one.values())
    assert 0.5 < weights / (tiny_bundle / f"{TARGET_GRAPH}.data").stat().st_size <= 1.1


def test_nodes_of_the_draft_round(tiny_bundle: Path) -> None:
    (nodes,) = draft_nodes(tiny_bundle, past=8, rows=(2,), repeats=1, threads=1)
    kinds = by_kind(nodes)
    assert "TopK" in kinds
    assert "GroupQueryAttention" not in kinds


def test_a_report_of_layers(tiny_bundle: Path) -> None:
    step, verify, draft = profile_layers(tiny_bundle, repeats=1, threads=1)
    assert [step["rows"], verify["rows"], draft["rows"]] == [1, 9, 1]
    for call in (step, verify, draft):
        assert sum(call["kinds"].values()) == pytest.approx(call["milliseconds"], abs=0.01)
        times = [node["milliseconds"] for node in call["heaviest"]]
        assert len(times) == 10
        assert times == sorted(times, reverse=True)
        assert all((node["weight_bytes"] > 0) == (node["bytes_per_second"] > 0) for node in call["heaviest"])
