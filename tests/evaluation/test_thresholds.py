"""The gate of a quantised bundle: every threshold has its sentence."""

import pytest

from poss_export.config import Thresholds
from poss_export.errors import QualityError
from poss_export.evaluation.thresholds import failures, require_quality

GOOD = {
    "text": {"perplexity": 10.4, "reference_perplexity": 10.0, "agreement": 0.9},
    "rounds": {"tau": 1.8, "reference_tau": 2.0},
}


@pytest.mark.parametrize(
    ("thresholds", "found"),
    [
        (Thresholds(1.04, 0.9, 0.9), []),
        (Thresholds(1.03, 0.9, 0.9), ["perplexity is 10.400, allowed are 10.300 (1.03 times 10.000)"]),
        (Thresholds(1.04, 0.91, 0.9), ["agreement is 0.900, wanted are 0.91"]),
        (Thresholds(1.04, 0.9, 0.95), ["tau is 1.80, wanted are 1.90 (0.95 times 2.00)"]),
    ],
)
def test_every_threshold_has_its_sentence(thresholds: Thresholds, found: list[str]) -> None:
    assert failures(GOOD, thresholds) == found
    assert failures({**GOOD, "rounds": {}}, thresholds) == [text for text in found if "tau" not in text]
    if not found:
        require_quality(GOOD, thresholds)
        return
    with pytest.raises(QualityError, match=r"is not good enough: .*\. Leave more layers") as error:
        require_quality(GOOD, thresholds)
    assert found[0] in str(error.value)


def test_what_is_not_a_number_is_not_good() -> None:
    figures = {"text": dict.fromkeys(GOOD["text"], float("nan")), "rounds": {"tau": 1, "reference_tau": 1}}
    assert len(failures(figures, Thresholds())) == 2
