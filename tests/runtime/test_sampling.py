import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from poss_export.errors import InputError
from poss_export.runtime.sampling import Noise, Sampling, draw, draw_gap, warp


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
    assert draw(q, np.array([1e-12, 1.0, 1e-12, 1.0, 1e-12])) == 3
    assert draw(q, np.array([1.0, 1e-12, 1.0, 1.0, 1.0])) == 1


def test_draw_follows_the_weights() -> None:
    rng = np.random.default_rng(1)
    q = np.array([1, 0, 3, 0.001], dtype=np.float32)
    counts = np.bincount([draw(q, rng.standard_exponential(4)) for _ in range(40_000)], minlength=4)
    assert counts[1] == 0
    assert counts[0] / 40_000 == pytest.approx(0.25, abs=0.01)
    assert 0 < counts[3] < 30  # ten are expected


def test_random_numbers_belong_to_positions() -> None:
    noise = Noise(7)
    numbers = np.stack([noise(position, 500).copy() for position in range(200)])
    for position in (199, 0, 5):
        np.testing.assert_array_equal(Noise(7)(position, 500), numbers[position])
    assert Noise(8)(0, 4).tolist() != numbers[0, :4].tolist()
    assert Noise(None)(0, 4).tolist() != Noise(None)(0, 4).tolist()
    assert len(np.unique(numbers)) == numbers.size  # no position repeats a part of another's
    assert np.exp(-numbers).mean() == pytest.approx(0.5, abs=0.01)
    assert numbers.mean() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02
    assert (Noise(2**200)(2**40, 3) > 0).all()  # any seed and position


def test_numbers_of_positions_to_come_are_those_that_are_drawn_with_then() -> None:
    noise, later = Noise(7), Noise(7)
    noise(3, 50)
    for position in (*range(4, 90), 5):
        np.testing.assert_array_equal(noise.ahead(position), later(position, 50))
    assert len(noise._latest) <= 33


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
EVEN, THIRD = np.ones(4), np.array([1, 1, 0.01, 1])  # the third token wins where it may,
FOURTH = np.array([1, 1, 1, 0.01])  # or the last
AHEAD = math.log(0.5 / 0.3)


@pytest.mark.parametrize(
    ("sampling", "noise", "gap"),
    [
        (Sampling(1.0), EVEN, AHEAD),
        (Sampling(2.0), EVEN, AHEAD),  # a difference of logits, whatever the temperature makes of them
        (Sampling(1.0), np.array([1, 0.6001, 1, 1]), math.log(0.5 * 0.6001 / 0.3)),
        (Sampling(1.0), THIRD, math.log(15 / 0.5)),
        (Sampling(1.0, top_k=2), THIRD, AHEAD),  # it may not, and is far from it
        (Sampling(1.0, top_k=1), THIRD, math.inf),
        (Sampling(1.0, top_p=0.7), THIRD, AHEAD),
        (Sampling(1.0, top_p=0.79995), THIRD, 0.0),  # two reach 0.8: it hardly may not
        (Sampling(1.0, top_p=0.79995), EVEN, AHEAD),  # and does not matter
        (Sampling(1.0, min_p=0.5), THIRD, AHEAD),
        (Sampling(1.0, min_p=0.30001), THIRD, 0.0),  # it has 0.3 of the likeliest
        (Sampling(1.0, min_p=0.29999), THIRD, 0.0),
        (Sampling(1.0, min_p=0.30001), EVEN, AHEAD),
        (Sampling(1.0, min_p=0.09999), FOURTH, 0.0),  # it cuts nothing, but nearly does
        (Sampling(1.0, min_p=0.09999), EVEN, AHEAD),
        (Sampling(1.0, top_p=0.95005), FOURTH, 0.0),  # three reach 0.95: likewise
        (Sampling(1.0, top_k=9), FOURTH, math.log(5 / 0.5)),  # nor is this near
    ],
)
def test_how_near_a_draw_is_to_another(sampling: Sampling, noise: NDArray[np.float64], gap: float) -> None:
    assert draw_gap(LOGITS, sampling, noise) == pytest.approx(gap, abs=1e-5)


def test_tokens_that_nearly_tie_at_an_edge() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.249999, 0.000001], dtype=np.float32))
    assert draw_gap(logits, Sampling(1.0, top_k=2), THIRD) == 0
    assert draw_gap(logits, Sampling(1.0, top_k=2), np.array([1, 0.01, 1, 1])) == 0  # nor did this one
    assert draw_gap(logits, Sampling(1.0, top_k=2), EVEN) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.05), Sampling(1, top_k=400), Sampling(1, top_p=0.9), Sampling(1, min_p=0.01)]
)
def test_a_small_weight_at_an_edge_makes_no_near_tie(sampling: Sampling) -> None:
    """Nor does one that underflows; or most draws were near-ties, and nothing could be a mismatch."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 20000).astype(np.float32)
    gaps = [draw_gap(logits, sampling, rng.standard_exponential(20000)) for _ in range(50)]
    assert sum(gap < 1e-4 for gap in gaps) <= 1


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.8, top_k=9), Sampling(1.2, top_p=0.9, min_p=0.05)]
)
def test_a_draw_with_a_gap_survives_rounding(sampling: Sampling) -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(2000):
        logits, noise = rng.normal(0, 2, 40).astype(np.float32), rng.standard_exponential(40)
        other = logits + rng.uniform(-1e-2, 1e-2, 40).astype(np.float32)
        if draw(warp(logits, sampling), noise) != draw(warp(other, sampling), noise):
            assert draw_gap(logits, sampling, noise, tolerance=3e-2) < 3e-2
            changed += 1
    assert changed  # or nothing was shown


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.5, "0 \\(greedy\\), or from 1e-6 to 1e30"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", 1e-9, "from 1e-6 to 1e30"),
        ("temperature", 1e39, "from 1e-6 to 1e30"),
        ("top_k", 2.5, "top_k is 2.5; it must be 0"),
        ("seed", 1.5, "seed is 1.5; it must be 0"),
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


@given(
    logits=arrays(
        np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32) | st.just(-math.inf)
    ),
    temperature=st.floats(1e-6, 1e30),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    position=st.integers(0, 2**40),
)
@example(np.zeros(5, np.float32), 1e30, 0, 1e-17, 0.0, 0)
@example(np.zeros(5, np.float32), 1.0, 0, 5e-324, 1.0, 0)
def test_any_valid_numbers_make_a_distribution(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, position: int
) -> None:
    """No warning, no error, and the likeliest token has a chance."""
    if np.isneginf(logits).all():
        logits[0] = 0.0
    sampling = Sampling(temperature, top_k, top_p, min_p, seed=1)
    q = warp(logits, sampling)
    assert q.min() >= 0
    assert q.sum() == pytest.approx(1, rel=1e-5)
    assert q[logits.argmax()] == q.max()
    noise = Noise(1)(position, len(logits))
    assert q[draw(q, noise)] > 0
    if len(logits) > 1:
        assert draw_gap(logits, sampling, noise) >= 0
