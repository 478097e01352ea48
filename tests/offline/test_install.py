"""Packs become an environment: what was packed, and of the machine what does not clash with it."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from offline.install import add_machine, main
from offline.pack import archive, keep_drafters
from offline.parts import split


def distribution(site: Path, name: str, module: str, version: str) -> None:
    """Write an installed distribution with one module."""
    facts = site / f"{name}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (facts / "RECORD").write_text(f"{module}/__init__.py,,\n{facts.name}/METADATA,,\n{facts.name}/RECORD,,\n")
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(f"build = {name!r}\n")


def test_a_build_of_the_machine_gives_way_to_the_packed_one(tmp_path: Path) -> None:
    machine, packages = tmp_path / "machine" / "site-packages", tmp_path / "packages"
    distribution(machine, "onnxruntime", "onnxruntime", "1.30.0")
    distribution(machine, "numpy", "numpy", "2.5.2")
    distribution(packages, "onnxruntime_gpu", "onnxruntime", "1.31.1")
    add_machine(packages, [machine])
    found = sorted(path.name for path in packages.iterdir())
    assert found == ["numpy", "numpy-2.5.2.dist-info", "onnxruntime", "onnxruntime_gpu-1.31.1.dist-info"]
    assert "onnxruntime_gpu" in (packages / "onnxruntime" / "__init__.py").read_text()


def test_the_environment_has_what_was_packed_and_what_the_machine_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, stage, out = tmp_path / "content", tmp_path / "stage", tmp_path / "out"
    distribution(content / "site", "packed", "packed", "1.0")
    (content / "dialogues").mkdir()
    (content / "dialogues" / "part-0000.npz").write_bytes(b"ids")
    archive(content, tmp_path / "project.tar.xz")
    split(tmp_path / "project.tar.xz", stage, 1_000_000)
    assert main([str(stage), "-o", str(out)]) == 0
    assert "python is ready" in capsys.readouterr().out
    said = "import packed, numpy; print(packed.build, numpy.__version__)"
    answer = subprocess.run([out / "bin" / "python", "-c", said], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["packed", np.__version__]
    assert (out / "dialogues" / "part-0000.npz").read_bytes() == b"ids"


def test_missing_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pack").write_bytes(bytes(5000))
    split(tmp_path / "pack", tmp_path / "stage", 2000)[2].unlink()
    assert main([str(tmp_path / "stage"), "-o", str(tmp_path / "out")]) == 1
    assert "lacks parts 2 of pack" in capsys.readouterr().err


def test_drafters_that_nobody_asked_for_stay_here(tmp_path: Path) -> None:
    for name in ("eagle", "poss-2"):
        (tmp_path / "poss_export" / "demo" / name).mkdir(parents=True)
    keep_drafters(tmp_path, ["poss-2"])
    assert [path.name for path in (tmp_path / "poss_export" / "demo").iterdir()] == ["poss-2"]
    with pytest.raises(Exception, match=r"no drafter 'other' is shipped; expected poss-2"):
        keep_drafters(tmp_path, ["other"])
