"""The tiny bundle, open for all tests of a file, and a text for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.runtime.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Any) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as engines:
        yield engines


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Three windows of the tiny capacity, and most of a fourth."""
    path = tmp_path / "text.txt"
    ids = np.random.default_rng(1).integers(3, 96, 3 * 48 + 47)
    path.write_text(" ".join(f"<{number}>" for number in ids), encoding="utf-8")
    return path
