"""A graph holds the tables of its checkpoint, every row; one that is wrong is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.stored import overwrite

CAPACITY = 48


@pytest.fixture
def tables(tiny_folder: Callable[[str], Path]) -> Any:
    from poss_export.exporters.tables import rotary
    from poss_export.targets.checkpoint import open_target

    config = open_target(str(tiny_folder("llama"))).config
    return lambda precision="fp32", rows=CAPACITY: rotary(config.ropes, config.head_dim, rows, precision)


@pytest.mark.parametrize("form", ["shared", "static"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_exported_graphs_hold_them(form: str, precision: str, target_graph: Any, tables: Any) -> None:
    from poss_export.exporters.tables import missing_tables

    assert missing_tables(target_graph("llama", form, precision), tables(precision)) == []


def test_each_row_counts(target_graph: Any, tables: Any, tmp_path: Path) -> None:
    from poss_export.exporters.tables import missing_tables

    graph = Path(shutil.copytree(target_graph("llama", "shared").parent, tmp_path / "copy")) / "target.onnx"
    overwrite(graph, "sin", lambda values: np.roll(values, 1, axis=0))
    assert missing_tables(graph, tables()) == ["sines"]
    assert missing_tables(graph, tables(rows=1)) == ["sines"]


def test_the_last_row_counts(target_graph: Any, tables: Any, tmp_path: Path) -> None:
    from poss_export.exporters.tables import missing_tables

    graph = Path(shutil.copytree(target_graph("llama", "shared").parent, tmp_path / "copy")) / "target.onnx"

    def spoil(values: Any) -> Any:
        values[CAPACITY - 1, 3] += 1e-6
        return values

    overwrite(graph, "cos", spoil)
    assert missing_tables(graph, tables()) == ["cosines"]
    assert missing_tables(graph, tables(rows=CAPACITY - 1)) == []
