"""Bundles with engines, run by the fakes of `tests/fixtures/fake_tensorrt.py`."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import plan_build
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import Profile
from poss_export.exporters.widening import widen
from poss_export.manifest import GRAPHS, read_manifest
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.sessions import caches, tensorrt
from poss_export.runtime.sessions.fit import choose_engines
from poss_export.runtime.sessions.ort import OrtOptions
from poss_export.targets.checkpoint import open_target
from tests.fixtures.fake_tensorrt import FakeDevice, FakeLibrary
from tests.fixtures.graphs import CAPACITY
from tests.fixtures.host_driver import HostDriver


@pytest.fixture(scope="session")
def smaller_graphs(tiny_folder: Any, random_drafter: Any, tmp_path_factory: Any) -> dict[int, Path]:
    """Return a folder with the graphs of `engine_bundle("fp32")` at a smaller capacity."""
    target = open_target(str(tiny_folder("llama")))
    drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
    shape: Any = {"capacity": 40, "precision": "fp32", "cache_form": "static"}
    plan = plan_build(target, drafter, tree=TreeShape(4, 3, 8), **shape)
    folder = tmp_path_factory.mktemp("graphs") / "40"
    build_bundle(plan, folder, argv=[], force=False, report=lambda _: None)
    return {40: folder}


@pytest.fixture
def run(engine_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return run(precision, ...): a context of an entered bundle on the fakes, and the fake library."""

    @contextmanager
    def make(
        precision: str = "fp32",
        flavour: Any = "tensorrt-rtx",
        change: Any = None,
        smaller: Any = None,
        profiles: Callable[[tuple[Profile, ...]], tuple[Profile, ...]] = tuple,
        slots: int = 1,
    ) -> Iterator[Any]:
        """With `smaller`, graphs by capacity, the bundle has engines of these capacities too.

        `change` alters a loaded engine; `profiles` makes those of all engines of what they are.
        """
        built = engine_bundle(precision, *(smaller or ()))
        folder = Path(shutil.copytree(built, tmp_path / "bundle", dirs_exist_ok=True))
        manifest, graphs = read_manifest(folder), {CAPACITY: folder, **(smaller or {})}
        if precision == "bf16":
            graphs = {CAPACITY: tmp_path}
            for graph in GRAPHS.values():
                widen(folder / graph, tmp_path / graph)
        library = FakeLibrary(graphs.__getitem__, manifest, profiles)
        library.change = change or library.change
        monkeypatch.setattr(tensorrt, "load_library", lambda entry: library)
        monkeypatch.setattr(tensorrt, "Device", FakeDevice)
        monkeypatch.setattr(caches, "_call_driver", HostDriver())
        FakeDevice.log.clear()
        found = choose_engines(folder, manifest, contracts_of(manifest), "tensorrt-rtx", lambda: "8.9")
        for entries in found.values():  # whatever flavour they play
            for index, entry in enumerate(entries):
                spec = replace(entry.spec, flavour=flavour, profiles=profiles(entry.spec.profiles))
                entries[index] = replace(entry, spec=spec)
                if flavour != entry.spec.flavour:
                    (folder / entries[index].spec.file).hardlink_to(folder / entry.spec.file)
        with Bundle(folder, manifest, OrtOptions(slots=slots), found) as entered:
            yield entered, library

    return make
