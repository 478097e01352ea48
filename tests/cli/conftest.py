"""What tests of the command line have in common: a tiny target, a random drafter, a bundle of both,
and what builds of quantised bundles are asked with.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import CAPACITY, done, words, write_drafter


@pytest.fixture(scope="session")
def target(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def drafter(target: Path, random_drafter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter folder for the tiny target."""
    return write_drafter(tmp_path_factory.mktemp("drafters") / "tiny-poss-2", target, random_drafter)


@pytest.fixture(scope="session")
def bundle(target: Path, drafter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `build` makes of both,
    and what builds of quantised bundles are asked with.
    """
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    done(
        "build",
        target,
        "--drafter",
        drafter,
        "-o",
        folder,
        "--capacity",
        48,
        "--tree-nodes",
        8,
        "--draft-precision",
        "float",
    )
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts.jsonl, for samples and tau, and text.txt, of four windows."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(5)
    prompts = [json.dumps({"prompt": words(*rng.integers(3, 96, 6))}) for _ in range(12)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    (folder / "three.jsonl").write_text("\n".join(prompts[:3]), encoding="utf-8")
    (folder / "text.txt").write_text(words(*rng.integers(3, 96, 4 * CAPACITY)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def float_options(target: Path) -> tuple[object, ...]:
    """What all builds here have in common."""
    tree = ("--tree-depth", 3, "--top-k", 2, "--tree-nodes", 5, "--capacity", CAPACITY)
    return ("build", target, *tree)


@pytest.fixture(scope="session")
def options(float_options: tuple[object, ...], inputs: Path) -> tuple[object, ...]:
    """What all quantised builds here have in common."""
    return (*float_options, "--held-out", inputs / "text.txt", "--held-out-prompts", inputs / "three.jsonl")


@pytest.fixture(scope="session")
def samples(
    float_options: tuple[object, ...], drafter: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    done(*float_options, "--drafter", drafter, "--draft-precision", "float", "-o", folder / "float")
    record = folder / "samples.npz"
    done("calibrate", folder / "float", "--prompts", inputs / "prompts.jsonl", "-o", record)
    return record
