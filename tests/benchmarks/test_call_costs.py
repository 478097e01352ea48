"""Target calls by width: their unit is a plain step, however wide it is."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.call_costs import measure_calls, plain_width
from benchmarks.workers import Setup
from poss_export.manifest import read_manifest

CAPACITY = 48


def test_target_only_decoding_has_calls_of_one_token(tiny_bundle: Path) -> None:
    assert plain_width(read_manifest(tiny_bundle)) == 1


def test_a_wider_plain_step_is_the_unit(changed: Callable[..., Path]) -> None:
    widths = {"least_width": 3, "siblings": 0.5}
    wide = changed(quantisation={"target": {"scheme": "w8a8"}}, quality={"widths": widths})
    setup = Setup(wide, (2,), CAPACITY, 1)
    (found,) = measure_calls({"wide": (read_manifest(wide), setup)}, past=8, calls=2).values()
    assert found["plain_width"] == 3
    assert list(found["milliseconds_by_width"]) == [1, 2, 3, 4, 8, 12, 16, 24, 32]
    assert found["plain_steps_by_width"][3] == 1
