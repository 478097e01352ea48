"""What tests of quantised checkpoints have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.quantised import Maker, write_quantised


@pytest.fixture
def write_case(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return write_case(stated, maker, ...): a checkpoint whose layers are quantised, and its values."""

    def folders(stated: dict[str, Any], maker: Maker, name: str = "llama3", **more: Any) -> tuple[Path, Path]:
        return write_quantised(
            tiny_folder(name),
            tmp_path,
            {"quantization_config": stated},
            lambda module: maker if module.startswith("model.layers.") else None,
            **more,
        )

    return folders
