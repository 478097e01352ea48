"""TensorRT sessions on real engines' descriptions, run by the fakes of `fake_tensorrt`."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.bundling.build import build_bundle
from poss_export.bundling.plan import plan_build
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import Profile, draft_profiles, embedded_spec, target_profiles
from poss_export.errors import BackendError, BundleError, InputError
from poss_export.evaluation.checks import check_cache_laws
from poss_export.evaluation.latency import profile_bundle
from poss_export.exporters.widening import widen
from poss_export.manifest import GRAPHS, Manifest, read_manifest, write_manifest
from poss_export.runtime import bundle
from poss_export.runtime.bundle import Bundle, contracts_of, open_bundle
from poss_export.runtime.sessions import bfloat16, caches, cuda, tensorrt
from poss_export.runtime.sessions.fit import check_engine, choose_engines, load_library
from poss_export.runtime.sessions.loaded_engine import choose_profile, plan_buffers
from poss_export.runtime.sessions.ort import OrtOptions
from poss_export.runtime.tree import DraftTree
from poss_export.targets.checkpoint import open_target
from tests.fixtures.fake_tensorrt import FakeDevice, FakeEngine, FakeLibrary
from tests.fixtures.host_driver import HostDriver

Make = Callable[..., Path]
CAPACITY, NODES = 48, 9


@pytest.fixture
def run(engine_bundle: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return run(precision, flavour): a context of an entered bundle on the fakes, and the fake library."""

    @contextmanager
    def make(
        precision: str = "fp32", flavour: Any = "tensorrt-rtx", change: Any = None, smaller: Any = None
    ) -> Iterator[Any]:
        """With `smaller`, graphs by capacity, the bundle has engines of these capacities too."""
        built = engine_bundle(precision, *(smaller or ()))
        folder = Path(shutil.copytree(built, tmp_path / "bundle", dirs_exist_ok=True))
        manifest, graphs = read_manifest(folder), {CAPACITY: folder, **(smaller or {})}
        if precision == "bf16":
            graphs = {CAPACITY: tmp_path}
            for graph in GRAPHS.values():
                widen(folder / graph, tmp_path / graph)
        library = FakeLibrary(graphs.__getitem__, manifest)
        library.change = change or library.change
        monkeypatch.setattr(tensorrt, "load_library", lambda entry: library)
        monkeypatch.setattr(tensorrt, "Device", FakeDevice)
        monkeypatch.setattr(caches, "_call_driver", HostDriver())
        FakeDevice.log.clear()
        found = choose_engines(folder, manifest, contracts_of(manifest), "tensorrt-rtx", lambda: "8.9")
        for entries in found.values():  # whatever flavour they play
            for index, entry in enumerate(entries):
                entries[index] = replace(entry, spec=replace(entry.spec, flavour=flavour))
                if flavour != entry.spec.flavour:
                    (folder / entries[index].spec.file).hardlink_to(folder / entry.spec.file)
        with Bundle(folder, manifest, OrtOptions(), found) as entered:
            yield entered, library

    return make


@pytest.fixture(scope="module")
def smaller_graphs(tiny_folder: Any, random_drafter: Any, tmp_path_factory: Any) -> dict[int, Path]:
    """Return a folder with the graphs of `engine_bundle("fp32")` at a smaller capacity."""
    target = open_target(str(tiny_folder("llama")))
    drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
    shape: Any = {"capacity": 40, "precision": "fp32", "cache_form": "static"}
    plan = plan_build(target, drafter, tree=TreeShape(4, 3, 8), **shape)
    folder = tmp_path_factory.mktemp("graphs") / "40"
    build_bundle(plan, folder, argv=[], force=False, report=lambda _: None)
    return {40: folder}


def executed(library: FakeLibrary, graph: str, capacity: int = CAPACITY) -> list[int]:
    """Return how often each profile ran."""
    return [context.runs for context in library.engines[graph, capacity].contexts]


def test_an_answer_climbs_from_capacity_to_capacity(
    run: Any, engine_bundle: Make, smaller_graphs: dict[int, Path]
) -> None:
    with open_bundle(engine_bundle("fp32", *smaller_graphs), threads=1) as expected:
        plain = expected.generate("<5> <9> <77>", raw=True, max_new_tokens=CAPACITY - 3, target_only=True)
    with run(smaller=smaller_graphs) as (ours, library):
        assert ours.target.capacity == CAPACITY
        for _ in range(2):  # the second begins in the smallest again, with empty caches
            answer = ours.generate("<5> <9> <77>", raw=True, max_new_tokens=CAPACITY - 3)
            assert answer.token_ids == plain.token_ids
            assert ours.target._engine.capacity == CAPACITY
        for capacity in (40, CAPACITY):
            assert sum(executed(library, "target", capacity)) > 0, capacity
        ours.target.reset()
        assert ours.target._engine.capacity == 40
        assert [check.name for check in check_cache_laws(ours) if not check.passed] == []


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_answers_are_those_of_onnx_runtime(flavour: str, run: Any, engine_bundle: Make) -> None:
    prompt, tokens = "<5> <9> <77>", CAPACITY - 3
    with open_bundle(engine_bundle("fp32"), threads=1) as expected:
        plain = expected.generate(prompt, raw=True, max_new_tokens=tokens, target_only=True)
    with run(flavour=flavour) as (ours, library):
        for _ in range(2):  # caches of the first answer are behind us
            answer = ours.generate(prompt, raw=True, max_new_tokens=tokens)
            assert answer.token_ids == plain.token_ids
        dynamic, fixed = executed(library, "target")
        assert fixed > 0
        assert dynamic > 0  # the prompt, and the trees that the end of the cache cut
        assert bool(FakeDevice.log) == (flavour == "tensorrt")  # the other captures by itself
        alone = ours.generate(prompt, raw=True, max_new_tokens=9, target_only=True)
        assert alone.token_ids == plain.token_ids[:9]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cache_laws_hold_under_every_profile(precision: str, run: Any) -> None:
    with run(precision) as (entered, _):
        checks = check_cache_laws(entered)
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 4


def test_bfloat16_results_are_values_not_bits(run: Any) -> None:
    with run("bf16") as (entered, _):
        entered.target.reset()
        output = entered.target.forward(DraftTree.with_root(5))
        assert output.features.dtype == output.logits.dtype == np.float32
        assert output.next_tokens[0] == output.logits[0].argmax()


def test_fixed_work_is_captured_once_for_each_width(run: Any) -> None:
    with run(flavour="tensorrt") as (entered, library):
        entered.generate("<5> <9> <77>", raw=True, max_new_tokens=20)
        for session, graph in ((entered.target, "target"), (entered.drafter, "draft")):
            assert session.engines[0]._run[0] is None  # the sizes of this profile are open
            assert session.engines[0]._run[1] is not None
            assert executed(library, graph)[1] > 2
        assert FakeDevice.log.count("captured") == 2


def test_a_short_round_is_padded_while_there_is_room(run: Any) -> None:
    with run() as (entered, library):
        drafter = entered.drafter
        drafter.reset()
        features = np.zeros((3, 64), np.float32)
        drafter.propose(np.array([1, 2, 3]), features)
        assert executed(library, "draft") == [0, 1]
        assert drafter.length() == 3
        drafter._lengths[0] = CAPACITY - 4  # five rows no longer fit
        drafter.propose(np.array([1, 2, 3]), features)
        assert executed(library, "draft") == [1, 1]
        with pytest.raises(InputError, match=r"3 tokens after 47 do not fit the capacity 48"):
            drafter.propose(np.array([1, 2, 3]), features)


def test_bindings_are_fixed_addresses_and_caches_are_shared(run: Any) -> None:
    with run() as (entered, library):
        (engine,) = entered.target.engines
        addresses = engine._addresses
        for context in library.engines["target", CAPACITY].contexts:
            assert context.addresses == addresses
        for past, present in engine.entry.aliases.items():
            assert addresses[past] == addresses[present]
        others = [address for name, address in addresses.items() if not name.startswith("present.")]
        assert len(set(others)) == len(others)


def test_buffers_hold_the_largest_call(engine_bundle: Make) -> None:
    manifest = read_manifest(engine_bundle("bf16"))
    contract = contracts_of(manifest)["target"].with_sizes(batch=1, capacity=CAPACITY)
    buffers = plan_buffers(contract, target_profiles(CAPACITY, NODES))
    assert buffers["tree_mask"] == CAPACITY * CAPACITY
    assert buffers["logits"] == 2 * CAPACITY * 96
    assert buffers["input_ids"] == 8 * CAPACITY
    assert not [name for name in buffers if name.startswith(("past_key_values", "present"))]


@pytest.mark.parametrize(
    ("sizes", "index"),
    [
        ({"seq": 9, "rows": 9}, 1),
        ({"seq": 9, "rows": 1}, 0),
        ({"seq": 8, "rows": 8}, 0),
        ({"seq": 256, "rows": 1}, 0),
        ({"seq": 1, "rows": 1}, 0),
    ],
)
def test_the_fixed_profile_is_for_its_sizes_only(sizes: dict[str, int], index: int) -> None:
    assert choose_profile(target_profiles(256, 9), **sizes) == index


def test_a_call_beyond_all_profiles_is_refused() -> None:
    with pytest.raises(InputError, match=r"a call of \{'rows': 257\} is too large .* up to \{'rows': 256\}"):
        choose_profile(draft_profiles(256, 6), rows=257)


def failing(engine: FakeEngine) -> FakeEngine:
    engine.works = False
    return engine


def misaliased(engine: FakeEngine) -> FakeEngine:
    engine.aliases["present.0.key"] = "past_key_values.0.value"
    return engine


def retyped(engine: FakeEngine) -> FakeEngine:
    engine.outputs["logits"] = ("HALF", engine.outputs["logits"][1])
    return engine


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda engine: None, BackendError, "does not load; it may be damaged, or the driver too old"),
        (misaliased, BackendError, "has present.0.key share the memory of past_key_values.0.value, expected"),
        (retyped, BundleError, "output 'logits' is float16"),
        (failing, BackendError, "failed while it ran"),
    ],
)
def test_what_a_device_refuses_is_told(change: Any, error: type[Exception], message: str, run: Any) -> None:
    with pytest.raises(error) as caught, run(change=change) as (entered, _):
        entered.generate("<5>", raw=True, max_new_tokens=3)
    assert message in str(caught.value)


@pytest.mark.skipif(cuda.has_driver(), reason="there is a GPU driver")
def test_without_a_gpu_there_is_one_message(engine_bundle: Make) -> None:
    for precision in ("fp16", "bf16"):
        with pytest.raises(BackendError) as caught:
            open_bundle(engine_bundle(precision), backend="tensorrt-rtx")
        assert str(caught.value).startswith("no CUDA driver on this machine (libcuda.so.1)")


def test_engines_are_for_their_backend_and_device(engine_bundle: Make, monkeypatch: Any) -> None:
    folder = engine_bundle("fp16")
    with pytest.raises(BackendError, match="has no TensorRT engine of its target graph: run its build again"):
        open_bundle(folder, backend="tensorrt")
    monkeypatch.setattr(bundle, "device_capability", lambda: "7.5")
    with pytest.raises(BackendError, match=r"are for compute capability 12.0, 8.6, 8.9, this device has 7.5"):
        open_bundle(folder, backend="tensorrt-rtx")


def test_bfloat16_is_not_for_onnx_runtime(engine_bundle: Make) -> None:
    with pytest.raises(BackendError, match="is in bf16, which ONNX Runtime does not run here"):
        open_bundle(engine_bundle("bf16"))


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


def test_an_engine_says_what_it_is(engine_bundle: Make) -> None:
    folder = engine_bundle("bf16")
    for entry in read_manifest(folder).engines:
        assert embedded_spec(folder / entry.spec.file) == entry.spec


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


def test_bfloat16_bits() -> None:
    values = np.array([1.0, -2.5, 3.14159, 1e38, 0.0, np.inf, np.nan, 1.00390625], np.float32)
    bits = bfloat16.narrow(values)
    assert bits.dtype == np.uint16
    back = bfloat16.widen(bits)
    np.testing.assert_allclose(back[:4], values[:4], rtol=2**-8)
    assert (back[4], back[5], back[7]) == (0.0, np.inf, 1.0)  # of two as near, the even one
    assert np.isnan(back[6])
    np.testing.assert_array_equal(bfloat16.narrow(back[:6]), bits[:6])


def test_a_profile_measures_engines_as_it_measures_graphs(run: Any) -> None:
    with run() as (entered, library):
        report = profile_bundle(entered, widths=[1, NODES], contexts=[20], repeats=2, report=lambda _: None)
        assert [row["width"] for row in report["verify"]] == [1, NODES]
        assert min(executed(library, "target")) > 0
