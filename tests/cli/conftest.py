"""What tests of the command line have in common: a tiny target, a random drafter, a bundle of both."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import done, write_drafter


@pytest.fixture(scope="session")
def target(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def drafter(target: Path, random_drafter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter folder for the tiny target."""
    return write_drafter(tmp_path_factory.mktemp("drafters") / "tiny-poss-2", target, random_drafter)


@pytest.fixture(scope="session")
def bundle(target: Path, drafter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `build` makes of both."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    done("build", target, "--drafter", drafter, "-o", folder, "--capacity", 48, "--tree-nodes", 8)
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))
