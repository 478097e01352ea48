"""Which folder may import which, and what costs nothing to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPINE = ROOT / "src/poss_export"

# Beside itself and the spine. `bundling` brings together what exports, what runs and what judges: `exporters`
# run no graph, `runtime` knows no exporter.
MAY_IMPORT: dict[str, set[str]] = {
    "targets": set(),
    "drafters": {"targets"},
    "runtime": set(),
    "evaluation": {"runtime"},
    "calibration": {"runtime", "evaluation"},
    "quantisation": {"runtime", "calibration", "evaluation"},
    "exporters": {"targets", "drafters"},
    "bundling": {
        *("targets", "drafters", "runtime", "evaluation", "calibration", "quantisation", "exporters"),
    },
    "training": {"targets", "drafters"},
    "server": {"runtime"},
}
EDGE = {"cli"}  # the command line brings the folders together; nothing imports it
HEAVY = ["torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tensorrt", "safetensors", "gguf"]
HEAVY += ["tensorrt_rtx", "polygraphy", "matplotlib"]


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return plain | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def ours(module: str) -> str | None:
    """Return the folder, or the module of the spine, that `module` of this package belongs to."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "poss_export" and rest else None


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


def test_every_folder_has_a_rule() -> None:
    folders = {link.name for link in SPINE.iterdir() if link.is_symlink()}
    assert folders == MAY_IMPORT.keys()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_what_they_may(folder: str) -> None:
    allowed = {folder, *MAY_IMPORT[folder], *(file.stem for file in SPINE.glob("*.py"))} - EDGE
    for file in files(ROOT / folder):
        others = {ours(module) for module in imported(file)} - {None}
        assert others <= allowed, file


def test_the_spine_imports_no_folder() -> None:
    for file in SPINE.glob("*.py"):
        if file.stem not in EDGE:
            assert not {ours(module) for module in imported(file)} & (MAY_IMPORT.keys() | EDGE), file


def test_deployed_code_names_no_training_library() -> None:
    for file in files(ROOT / "runtime"):
        names = {module.partition(".")[0] for module in imported(file)}
        known = {"onnxruntime", "onnx"} if file.name == "slots.py" else {"onnxruntime"}
        assert not names & ({*HEAVY} - known), file


def test_importing_is_cheap() -> None:
    """The spine, the command line and the runtime load none of the heavy libraries."""
    lazy = ("__init__", "chat_template")  # the latter is jinja2's own, and imported where it is used
    modules = [f"poss_export.{file.stem}" for file in SPINE.glob("*.py") if file.stem not in lazy]
    modules += [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files(ROOT / "runtime")]
    modules = [f"poss_export.{name}" if name.startswith("runtime") else name for name in modules]
    modules = [module.removesuffix(".__init__") for module in modules]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & {*HEAVY, "tokenizers", "jinja2"}
