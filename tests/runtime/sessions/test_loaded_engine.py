"""Engines on a device: bindings, buffers, the profile of a call, and what the device refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.engine_spec import draft_profiles, target_profiles
from poss_export.errors import BackendError, BundleError, InputError
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import contracts_of
from poss_export.runtime.sessions.loaded_engine import choose_profile, plan_buffers
from tests.fixtures.fake_tensorrt import FakeEngine
from tests.fixtures.graphs import CAPACITY

Make = Callable[..., Path]
NODES = 9


def test_bindings_are_fixed_addresses_and_caches_are_shared(run: Any) -> None:
    with run() as (entered, library):
        (engine,) = entered.target.engines
        addresses = engine._addresses
        for context in library.engines["target", CAPACITY].contexts:
            assert context.addresses == addresses
        for past, present in engine.entry.aliases.items():
            assert addresses[past] == addresses[present]
        (shared,) = {context.memory for context in library.engines["target", CAPACITY].contexts}
        assert shared[0] not in addresses.values()
        others = [address for name, address in addresses.items() if not name.startswith("present.")]
        assert len(set(others)) == len(others)


def test_buffers_hold_the_largest_call(engine_bundle: Make) -> None:
    manifest = read_manifest(engine_bundle("bf16"))
    contract = contracts_of(manifest)["target"].with_sizes(batch=1, capacity=CAPACITY)
    buffers = plan_buffers(contract, target_profiles(CAPACITY, (NODES,)))
    assert buffers["tree_mask"] == CAPACITY * CAPACITY
    assert buffers["logits"] == 2 * CAPACITY * 96
    assert buffers["input_ids"] == 8 * CAPACITY
    assert not [name for name in buffers if name.startswith(("past_key_values", "present"))]


@pytest.mark.parametrize(
    ("sizes", "index"),
    [
        ({"seq": 4, "rows": 4}, 1),
        ({"seq": 9, "rows": 9}, 2),
        ({"seq": 9, "rows": 1}, 0),
        ({"seq": 8, "rows": 8}, 0),
        ({"seq": 256, "rows": 1}, 0),
        ({"seq": 1, "rows": 1}, 0),
    ],
)
def test_the_fixed_profile_is_for_its_sizes_only(sizes: dict[str, int], index: int) -> None:
    assert choose_profile(target_profiles(256, (4, 9)), **sizes) == index


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
