"""A drafter that starts from a trained one drafts as it does, whatever parts it has besides."""

from typing import Any

import pytest
import torch

from poss_export.drafters.model import Drafter
from poss_export.errors import InputError
from poss_export.training.initialise import initialise, start_from
from poss_export.training.unroll import Batch, unroll
from tests.fixtures.random_drafter import HIDDEN, random_drafter

PARALLEL: dict[str, Any] = {"drafting": "parallel", "num_masks": 3}


def outputs(drafter: Drafter, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(1, 8, HIDDEN, generator=generator)
    features = torch.randn(1, 8, drafter.config.feature_size, generator=generator)
    batch = Batch(embeddings, features, torch.ones(1, 8, dtype=torch.bool))
    with torch.no_grad():
        return [x for pair in unroll(drafter, batch, steps) for x in pair]


@pytest.mark.parametrize(
    ("specialists", "choices", "steps"),
    [
        (1, {"fusion": "gated", "fusion_bias": True, "alignment": "split"}, 4),
        (1, {"fusion": "guided", "fusion_bias": True}, 4),
        (3, {"fusion": "gated", "alignment": "split"}, 4),
        (3, {**PARALLEL, "num_layers": 3}, 1),  # later positions are mask rows, which it never had
    ],
)
def test_new_parts_start_without_effect(specialists: int, choices: dict[str, Any], steps: int) -> None:
    trained = random_drafter()
    drafter = random_drafter(specialists, None if specialists == 1 else 1, **choices)
    initialise(drafter, feature_spread=2.0, seed=0)
    start_from(drafter, trained)
    torch.testing.assert_close(outputs(drafter, steps), outputs(trained, steps))


@pytest.mark.parametrize("choices", [{}, {**PARALLEL, "num_layers": 2}, {"fusion": "gated"}])
def test_a_drafter_of_the_same_parts_is_copied_whole(choices: dict[str, Any]) -> None:
    trained, drafter = random_drafter(3, 2, **choices), random_drafter(3, 2, **choices)
    initialise(drafter, feature_spread=2.0, seed=0)
    start_from(drafter, trained)
    assert all(torch.equal(a, b) for a, b in zip(drafter.parameters(), trained.parameters(), strict=True))


TAPS: dict[str, Any] = {"fusion": "taps", "taps": (1, 2), "own_head": True}


def test_specialists_start_from_a_drafter_of_taps() -> None:
    trained, drafter = random_drafter(**TAPS), random_drafter(3, 1, **TAPS)
    initialise(drafter, feature_spread=2.0, seed=0)
    start_from(drafter, trained)
    states = drafter.state_dict(), trained.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in ("head", "final_norm.weight"))
    torch.testing.assert_close(outputs(drafter, 4), outputs(trained, 4))


@pytest.mark.parametrize(
    ("trained", "drafter", "part"),
    [
        (random_drafter(**TAPS), random_drafter(**{**TAPS, "taps": (1, 3)}), "taps"),
        (random_drafter(**TAPS), random_drafter(**TAPS, norm_before_residual=True), "norm_before_residual"),
        (random_drafter(**TAPS), random_drafter(**{**TAPS, "own_head": False}), r"tables \(head\)"),
        (random_drafter(**TAPS), random_drafter(**TAPS, num_layers=2), "layers"),
        (random_drafter(), random_drafter(**TAPS), "taps"),
    ],
)
def test_taps_of_another_kind_are_refused(trained: Drafter, drafter: Drafter, part: str) -> None:
    with pytest.raises(InputError, match=f"other {part} than the one to train"):
        start_from(drafter, trained)


@pytest.mark.parametrize(
    ("trained", "part"),
    [
        (random_drafter(2, 1), "specialists"),
        (random_drafter(fusion="gated"), "fusion"),
        (random_drafter(alignment="split"), "alignment"),
        (random_drafter(**PARALLEL), "drafting"),
        (random_drafter(**PARALLEL, num_layers=2), "layers"),
        (random_drafter(qkv_bias=True), "weights in its Specialist"),
    ],
)
def test_parts_that_would_be_lost_are_refused(trained: Drafter, part: str) -> None:
    drafter = random_drafter()
    initialise(drafter, feature_spread=2.0, seed=0)
    with pytest.raises(InputError, match=f"other {part} than the one to train"):
        start_from(drafter, trained)
