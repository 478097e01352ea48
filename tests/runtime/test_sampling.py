import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poss_export.errors import InputError
from poss_export.runtime.sampling import Sampling, Uniforms, draw, draw_margin, warp


def plain_warp(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The same filters, one token at a time over a sorted list."""
    z = logits.astype(np.float64) / sampling.temperature
    p = np.exp(z - z.max())
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    kept: list[np.intp] = []
    total, reached = p[order].sum(), 0.0
    for token in order:
        if kept and reached >= sampling.top_p * total * (1 - 1e-9):
            break
        kept.append(token)
        reached += p[token]
    kept = [token for token in kept if p[token] >= sampling.min_p * p.max()]
    q = np.zeros_like(p)
    q[kept] = p[kept]
    weights: NDArray[np.float64] = q / q.sum()
    return weights


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.4, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_warp_is_the_definition(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    rng = np.random.default_rng(0)
    for spread in (0.1, 2.0, 8.0):
        logits = rng.normal(0, spread, 300).astype(np.float32)
        q = warp(logits, sampling)
        np.testing.assert_allclose(q, plain_warp(logits, sampling), atol=2e-6)
        assert q.sum() == pytest.approx(1, abs=1e-5)


def test_warp_leaves_the_logits_alone() -> None:
    logits = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    warp(logits, Sampling(temperature=0.5, top_k=2, top_p=0.9, min_p=0.1))
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_ties_with_the_last_token_kept_stay() -> None:
    logits = np.array([2.0, 1.0, 1.0, 0.0], dtype=np.float32)
    assert (warp(logits, Sampling(1.0, top_k=2)) > 0).tolist() == [True, True, True, False]
    assert (warp(logits, Sampling(1.0, top_p=0.7)) > 0).tolist() == [True, True, True, False]


def test_uniform_logits_survive_top_p() -> None:
    q = warp(np.zeros(50, dtype=np.float16), Sampling(1.0, top_p=0.5))
    np.testing.assert_allclose(q, 1 / 50)


def test_extreme_logits_and_temperatures() -> None:
    logits = np.array([6e4, -6e4, 0.0], dtype=np.float16)
    for temperature in (1e-6, 1.0, 1e9):
        assert np.isfinite(warp(logits, Sampling(temperature))).all()
    assert warp(logits, Sampling(1e-6)).tolist() == [1.0, 0.0, 0.0]


def test_draw_never_takes_what_has_no_weight() -> None:
    q = np.array([0, 0.3, 0, 0.7, 0], dtype=np.float32)
    assert draw(q, 0.0) == 1
    assert draw(q, 1 - 2**-53) == 3
    assert draw(q, 1.0) == 3  # what rounding makes of the last number below 1


def test_draw_follows_the_weights() -> None:
    rng = np.random.default_rng(1)
    q = np.array([1, 0, 3], dtype=np.float32)
    counts = np.bincount([draw(q, rng.random()) for _ in range(4000)], minlength=3)
    assert counts[1] == 0
    assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)


def test_random_numbers_belong_to_positions() -> None:
    uniforms = Uniforms(7)
    numbers = [uniforms(position) for position in range(2000)]
    assert [Uniforms(7)(position) for position in (1999, 0, 5)] == [numbers[1999], numbers[0], numbers[5]]
    assert Uniforms(8)(0) != numbers[0]
    assert Uniforms(None)(0) != Uniforms(None)(0)
    assert len(set(numbers)) == 2000
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(200, abs=60)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.1
    assert 0 <= Uniforms(2**200)(2**40) < 1  # any seed and position


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))


@pytest.mark.parametrize(
    ("sampling", "u", "margin"),
    [
        (Sampling(1.0), 0.6, 0.1),  # above the first share's end
        (Sampling(1.0), 0.79, 0.01),
        (Sampling(1.0), 0.001, 0.499),  # the very ends are no boundaries
        (Sampling(1.0), 0.999, 0.049),
        (Sampling(1.0, top_k=2), 0.62, 0.005),  # of what is left: 0.625 and 0.375
        (Sampling(1.0, top_k=2), 0.1, 0.15),  # the third token might have been kept in the second's place
        (Sampling(1.0, top_p=0.79), 0.1, 0.01),  # two reach 0.8
        (Sampling(1.0, min_p=0.31), 0.1, 0.005),  # the third has 0.3 of the likeliest
    ],
)
def test_how_near_a_draw_is_to_another(sampling: Sampling, u: float, margin: float) -> None:
    assert draw_margin(LOGITS, sampling, u) == pytest.approx(margin, abs=2e-6)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.8, top_k=9), Sampling(1.2, top_p=0.9, min_p=0.05)]
)
def test_a_draw_with_a_margin_survives_rounding(sampling: Sampling) -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(400):
        logits, u = rng.normal(0, 2, 40).astype(np.float32), rng.random()
        other = logits + rng.normal(0, 1e-3, 40).astype(np.float32)
        if draw(warp(logits, sampling), u) != draw(warp(other, sampling), u):
            assert draw_margin(logits, sampling, u) < 5e-3
            changed += 1
    assert changed  # or nothing was shown


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.5, "0 \\(greedy\\) or at least 1e-6"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", 1e-9, "at least 1e-6"),
        ("top_k", -1, "0 \\(off\\) or a positive number of tokens"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_p", math.nan, "top_p is nan"),
        ("min_p", -0.1, "from 0 \\(off\\) to 1"),
        ("min_p", 1.1, "from 0 \\(off\\) to 1"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_bad_values(field: str, value: float, expected: str) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(InputError, match=expected):
        Sampling(**values)
