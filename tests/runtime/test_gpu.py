"""Real engines on a real device; everywhere else these are skipped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from poss_export.errors import BackendError
from poss_export.evaluation.checks import check_cache_laws
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.sessions import cuda
from poss_export.runtime.sessions.tensorrt import TensorrtTargetSession
from tests.fixtures.filled_calls import largest_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.has_driver(), reason="no CUDA driver: this needs an NVIDIA GPU"),
]


def opened(folder: Path) -> Bundle:
    try:
        return open_bundle(folder, backend="tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))  # TensorRT-RTX does not build for every device


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cache_laws_hold(precision: str, engine_bundle: Callable[..., Path]) -> None:
    with opened(engine_bundle(precision)) as bundle:
        checks = check_cache_laws(bundle)
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.05), ("bf16", 0.5)])
def test_narrow_trees_are_filled_up(
    precision: str, tolerance: float, engine_bundle: Callable[..., Path]
) -> None:
    """Kernels differ with the width, so results are near, not equal: each width runs twice, captured once."""
    with opened(engine_bundle(precision)) as bundle:
        assert isinstance(bundle.target, TensorrtTargetSession)
        assert bundle.target.widths == (2, 4, 8, 9)
        for width in (1, 2, 3, 5, 8, 9, 1, 3, 5):
            assert largest_difference(bundle.target, width) < tolerance, width


def test_greedy_answers_are_those_of_onnx_runtime(engine_bundle: Callable[..., Path]) -> None:
    folder = engine_bundle("fp32")
    with open_bundle(folder, threads=1) as bundle:
        expected = bundle.generate("<5> <9>", raw=True, max_new_tokens=40, target_only=True).token_ids
    with opened(folder) as bundle:
        for target_only in (False, True):
            answer = bundle.generate("<5> <9>", raw=True, max_new_tokens=40, target_only=target_only)
            assert answer.token_ids == expected
