import ctypes
from typing import Any

import numpy as np
import onnxruntime
import pytest

from poss_export.runtime.sessions import caches
from poss_export.runtime.sessions.caches import CudaCaches, HostCaches
from tests.fixtures.host_driver import HostDriver

SHAPE = (4, 2, 3, 10, 2)  # tensors, slots, heads, capacity, head size


@pytest.fixture(params=["host", "cuda"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Return a cache, a view of its block, and its driver if any; CUDA's is host memory."""
    if request.param == "host":
        host = HostCaches(SHAPE, "float16")
        return host, host.block, None
    allocate, driver = onnxruntime.OrtValue.ortvalue_from_shape_and_type, HostDriver()
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, *_: allocate(shape, kind)
    )
    monkeypatch.setattr(caches, "_call_driver", driver)
    device = CudaCaches(SHAPE, "float16")
    size = int(np.prod(SHAPE)) * 2
    memory = memoryview((ctypes.c_byte * size).from_address(device._address))
    return device, np.frombuffer(memory, np.float16).reshape(SHAPE), driver


def test_begins_with_zeros(cache: Any) -> None:
    _, block, _ = cache
    assert (block == 0).all()


@pytest.mark.parametrize("slot", [0, 1])
def test_move_keeps_the_path_and_nothing_else_changes(cache: Any, slot: int) -> None:
    subject, block, driver = cache
    block[:] = np.arange(block.size).reshape(SHAPE) % 1000
    before = block.copy()
    subject.move(slot, np.array([3, 4, 7]), 2)
    np.testing.assert_array_equal(block[:, slot, :, 2:5], before[:, slot][..., [3, 4, 7], :])
    np.testing.assert_array_equal(block[..., :2, :], before[..., :2, :])
    np.testing.assert_array_equal(block[..., 5:, :], before[..., 5:, :])
    np.testing.assert_array_equal(block[:, 1 - slot], before[:, 1 - slot])
    assert driver is None or not driver.unfinished


@pytest.mark.parametrize("slot", [0, 1])
def test_clear_zeroes_the_first_rows_of_every_head(cache: Any, slot: int) -> None:
    subject, block, driver = cache
    block[:] = 1
    subject.clear(slot, 4)
    assert (block[:, slot, :, :4] == 0).all()
    assert (block[:, slot, :, 4:] == 1).all()
    assert (block[:, 1 - slot] == 1).all()
    assert driver is None or not driver.unfinished


def test_the_drivers_struct_has_its_size() -> None:
    assert ctypes.sizeof(caches._Copy2D) == 128  # CUDA_MEMCPY2D on 64-bit systems


@pytest.mark.parametrize("slots", [1, 3])
def test_rows_move_to_caches_of_another_capacity(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_call_driver", HostDriver())
    shape = (SHAPE[0], slots, *SHAPE[2:])
    blocks = [np.full((*shape[:3], capacity, shape[4]), 9, np.float16) for capacity in (10, 16)]
    small, large = (caches.DeviceRows(block.ctypes.data, block.shape, 2) for block in blocks)
    assert not any(block.any() for block in blocks)
    blocks[0][:] = np.arange(blocks[0].size).reshape(shape) % 1000
    small.copy_to(large, slots - 1, 7)
    np.testing.assert_array_equal(blocks[1][:, -1, :, :7], blocks[0][:, -1, :, :7])
    assert not blocks[1][..., 7:, :].any()
    assert not blocks[1][:, :-1].any()
