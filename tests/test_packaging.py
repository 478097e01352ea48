"""What the distribution contains and requires, against the folders of the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SPINE = ROOT / "src/poss_export"
SETUPTOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Return the folder that holds `package`, following the mapping of its longest mapped parent."""
    mapping = SETUPTOOLS["package-dir"]
    parent, inner = package, list[str]()
    while parent not in mapping:
        parent, _, name = parent.rpartition(".")
        inner.insert(0, name)
    return ROOT.joinpath(mapping[parent], *inner)


def test_every_folder_with_code_is_a_listed_package() -> None:
    found = {
        init.parent
        for package in SETUPTOOLS["package-dir"]
        for init in folder_of(package).rglob("__init__.py")
        if not any(part.is_symlink() for part in init.parents)
    }
    assert found == {folder_of(package) for package in SETUPTOOLS["packages"]}
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


def test_every_folder_is_linked_into_the_spine() -> None:
    mapped = {name.removeprefix("poss_export.") for name in SETUPTOOLS["package-dir"]} - {"poss_export"}
    links = {path.name: path.readlink() for path in SPINE.iterdir() if path.is_symlink()}
    assert links == {name: Path("../..") / name for name in mapped}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the default wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"), build=None)


def build_wheel(folder: Path, build: str | None) -> Path:
    """Build a wheel of a copy of the checkout, so that no build leftovers touch it."""
    source = folder / "source"
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "src", *SETUPTOOLS["package-dir"].values()]
    source.mkdir()
    for name in sorted({Path(name).parts[0] for name in names}):
        subprocess.run(["cp", "-R", "-P", ROOT / name, source / name], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "POSS_EXPORT_ONNXRUNTIME"}
    if build is not None:
        environment["POSS_EXPORT_ONNXRUNTIME"] = build
    command = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", command, str(folder)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    (path,) = folder.glob("*.whl")
    return path


def metadata(wheel: Path) -> Message:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def required(wheel: Path, *extras: str) -> set[str]:
    """Return the names of what pip installs directly for `extras`: the package itself, then each extra."""
    requirements = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]
    names = {
        requirement.name
        for requirement in requirements
        for extra in ("", *extras)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    }
    return names


def test_a_wheel_holds_all_source_files(wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for path in folder_of(package).glob("*.py")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert expected <= names
    assert "poss_export/py.typed" in names


RUNTIME = {"click", "jinja2", "numpy", "onnxruntime", "platformdirs", "rich", "tokenizers"}


def test_the_plain_install_is_the_deployment_runtime(wheel: Path) -> None:
    assert required(wheel) == RUNTIME


@pytest.mark.parametrize(
    "extra", ["export", "training", "server", "polygraphy", "tensorrt", "tensorrt-rtx", "plot", "dev"]
)
def test_extras_add_to_the_runtime(wheel: Path, extra: str) -> None:
    assert extra in metadata(wheel).get_all("Provides-Extra", [])
    added = required(wheel, extra) - RUNTIME
    assert added
    assert not {name for name in added if name.startswith("onnxruntime")}


def test_the_gpu_build_replaces_the_cpu_build(tmp_path: Path) -> None:
    gpu = build_wheel(tmp_path, build="gpu")
    assert required(gpu) == RUNTIME - {"onnxruntime"} | {"onnxruntime-gpu"}
    assert "onnxruntime" not in required(gpu, "export", "training", "dev")


def test_an_unknown_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="POSS_EXPORT_ONNXRUNTIME is 'rocm'; set it to cpu or gpu"):
        build_wheel(tmp_path, build="rocm")


def test_constraints_pin_every_direct_requirement(wheel: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0]: line.partition("==")[2] for line in lines if not line.startswith("#")}
    for line in metadata(wheel).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.name != "poss-export":
            assert requirement.specifier.contains(pins[requirement.name]), line


def test_a_wheel_holds_the_demo_drafters(wheel: Path) -> None:
    expected = {str(path.relative_to(SPINE)) for path in (SPINE / "demo").glob("*/*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("poss_export/") for name in archive.namelist()}
    assert {"demo/poss-2/config.json", "demo/poss-2/model.safetensors"} <= expected <= names
