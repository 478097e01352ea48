"""Engines that do not fit the bundle, the library or the device are refused, with the field that is wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from poss_export.engine_spec import Profile
from poss_export.errors import BackendError, BundleError
from poss_export.manifest import Manifest, read_manifest, write_manifest
from poss_export.runtime import bundle
from poss_export.runtime.bundle import contracts_of, open_bundle
from poss_export.runtime.sessions.fit import check_engine, load_library

Make = Callable[..., Path]


def test_engines_are_for_their_backend_and_device(engine_bundle: Make, monkeypatch: Any) -> None:
    folder = engine_bundle("fp16")
    with pytest.raises(BackendError, match="has no TensorRT engine of its target graph: run its build again"):
        open_bundle(folder, backend="tensorrt")
    monkeypatch.setattr(bundle, "device_capability", lambda: "7.5")
    with pytest.raises(BackendError, match=r"are for compute capability 12.0, 8.9, this device has 7.5"):
        open_bundle(folder, backend="tensorrt-rtx")


def test_another_version_is_refused(engine_bundle: Make) -> None:
    entry = read_manifest(engine_bundle("fp16")).engines[0]
    assert load_library(entry).__version__ == entry.spec.version
    old = replace(entry, spec=replace(entry.spec, version="1.6.0"))
    with pytest.raises(BackendError, match=r"was built by version 1\.6\.0, installed is 1\.\d+"):
        load_library(old)
    compatible = replace(old.spec.options, version_compatible=True)
    assert load_library(replace(old, spec=replace(old.spec, options=compatible)))
    missing = replace(entry, spec=replace(entry.spec, flavour="tensorrt"))
    if find_spec("tensorrt") is None:
        with pytest.raises(BackendError, match=r"cannot be imported .*pip install 'poss-export\[tensorrt\]'"):
            load_library(missing)


# Every field of a specification and of its options, with a value that it does not have.
SPEC: dict[str, Any] = {
    "version": "1.6.0",
    "precision": "bf16",
    "capacity": 64,
    "profiles": (Profile({"seq": (1, 1, 1), "rows": (1, 1, 1)}),),
    "graph_sha256": "0" * 64,
}
OPTIONS: dict[str, Any] = {
    "optimization_level": 5,
    "version_compatible": True,
    "hardware_compatible": True,
    "strip_weights": True,
    "weight_streaming": True,
}
ENTRY: dict[str, Any] = {
    "aliases": {},
    "attention": {"some": "decomposed"},
    "build_seconds": 0.0,
    "peak_memory": 0,
}


@pytest.mark.parametrize("field", [*SPEC, *OPTIONS, *ENTRY, "compute_capabilities", "graph", "flavour"])
def test_a_field_that_is_not_true_is_named(field: str, engine_bundle: Make, tmp_path: Path) -> None:
    """The manifest is written again, so that only the field itself can give it away."""
    folder = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "copy"))
    manifest = read_manifest(folder)
    target, draft = manifest.engines
    named = field
    if field in SPEC:
        target = replace(target, spec=replace(target.spec, **{field: SPEC[field]}))
    elif field in ENTRY:
        target = replace(target, **{field: ENTRY[field]})
    elif field in ("graph", "flavour"):  # then this engine is another's, or missing
        other: Any = {"graph": "draft", "flavour": "tensorrt"}
        target = replace(target, spec=replace(target.spec, **{field: other[field]}))
        named = "target"
    else:
        options = {"compute_capabilities": ("8.9",), **OPTIONS}
        changed = replace(target.spec.options, **{field: options[field]})
        target = replace(target, spec=replace(target.spec, options=changed))
        named = "file" if field == "compute_capabilities" else f"options.{field}"
    write_manifest(folder, replace(manifest, engines=(target, draft)))
    with pytest.raises((BundleError, BackendError)) as caught:
        open_bundle(folder, backend="tensorrt-rtx")
    assert named in str(caught.value)


def test_every_field_of_an_engine_was_mutated(engine_bundle: Make) -> None:
    entry = read_manifest(engine_bundle("fp16")).engines[0]
    ours = {*SPEC, "graph", "flavour", "options"}
    assert entry.spec.__dataclass_fields__.keys() == ours
    assert entry.spec.options.__dataclass_fields__.keys() == {*OPTIONS, "compute_capabilities"}
    assert entry.__dataclass_fields__.keys() == {*ENTRY, "spec"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"bytes, the manifest says"),
        (lambda content: b"\0" * len(content), "was changed after the build: its hash does not match"),
    ],
)
def test_a_damaged_engine_is_refused(
    damage: Callable[[bytes], bytes], message: str, engine_bundle: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "copy"))
    engine = folder / read_manifest(folder).engines[0].spec.file
    engine.write_bytes(damage(engine.read_bytes()))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, backend="tensorrt-rtx")


def test_a_large_engine_that_is_none_is_refused(engine_bundle: Make, tmp_path: Path) -> None:
    """Large files are hashed only on a full check; but an engine says what it is."""
    folder = Path(shutil.copytree(engine_bundle("fp16"), tmp_path / "copy"))
    manifest: Manifest = read_manifest(folder)
    entry = manifest.engines[0]
    (folder / entry.spec.file).write_bytes(b"\0" * 5000)
    with pytest.raises(BundleError, match="is no engine of this project, or is damaged"):
        check_engine(folder, manifest, contracts_of(manifest)["target"], entry)
