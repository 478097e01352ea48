"""Bundles that differ from the tiny one in their manifest, and records made of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from poss_export.calibration.record import Record, record_rounds
from poss_export.config import TreeShape
from poss_export.manifest import read_manifest, write_manifest
from poss_export.runtime.bundle import open_bundle
from tests.calibration_graphs import CAPACITY
from tests.random_drafter import random_drafter, random_rows

PROMPTS = [[i, i + 1, 2 * i, 3, 5] for i in range(1, 20)]
FAMILIES: dict[str, dict[str, Any]] = {
    "linear": {},
    "gated": {"fusion": "gated", "fusion_bias": True},
    "split": {"fusion": "guided", "fusion_bias": True, "qkv_bias": True, "alignment": "split"},
    "parallel": {"drafting": "parallel", "num_masks": 4},
}
TEMPLATE = "{% for message in messages %}<1> {{ message['content'] }} <2> {% endfor %}<3>"


@pytest.fixture(scope="session")
def record(tiny_bundle: Path) -> Record:
    """What 19 answers of the tiny bundle, up to its capacity, leave."""
    with open_bundle(tiny_bundle, threads=1) as bundle:
        return record_rounds(bundle, PROMPTS, 99, argv=("poss-export", "calibrate"))


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return changed(**fields): a copy of the tiny bundle with other fields in its manifest."""

    def change(**fields: Any) -> Path:
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
        write_manifest(folder, replace(read_manifest(folder), **fields))
        return folder

    return change


@pytest.fixture
def chat_bundle(tiny_bundle: Path, changed: Callable[..., Path]) -> Path:
    """A copy of the tiny bundle with a chat template."""
    return changed(text=replace(read_manifest(tiny_bundle).text, chat_template=TEMPLATE))


@pytest.fixture(scope="session")
def draft_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return draft_graph(family, cache_form="shared", precision="fp32"): of a drafter of `FAMILIES`."""

    @cache
    def export(family: str, cache_form: Any = "shared", precision: Any = "fp32") -> Path:
        from poss_export.drafters.rounds import make_drafting
        from poss_export.exporters.drafter import export_drafter

        path = tmp_path_factory.mktemp(f"{family}-{cache_form}-{precision}") / "draft.onnx"
        specialists = (1, None) if family == "parallel" else (2, 2)
        drafter, rows = random_drafter(*specialists, **FAMILIES[family]), random_rows(1)
        drafting = make_drafting(drafter, TreeShape(3, 2, 5), rows, rows)
        export_drafter(drafting, path, cache_form=cache_form, precision=precision, capacity=CAPACITY)
        return path

    return export
