"""Ids as ranges, and in words."""

import numpy as np
import pytest

from poss_export.draft_vocabulary import DraftVocabulary


@pytest.mark.parametrize(
    ("ids", "ranges"),
    [
        ([0, 1, 2, 3], "0-3"),
        ([0], "0"),
        ([5, 7, 8, 128009], "5,7-8,128009"),
        ([2, 4, 6], "2,4,6"),
    ],
)
def test_ids_are_kept_as_ranges(ids: list[int], ranges: str) -> None:
    kept = DraftVocabulary.of(np.array(ids), "tokenizer")
    assert kept.ids == ranges
    assert kept.to_array().tolist() == ids
    assert kept.to_array().dtype == np.int64
