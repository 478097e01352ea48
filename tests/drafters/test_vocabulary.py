"""Which tokens are frequent, by counts and by tokenizers of each kind."""

import numpy as np
import pytest

from poss_export.drafters.vocabulary import most_frequent, ranks_of
from poss_export.text import Text, TextConfig
from tests.fixtures.small_tokenizers import CONTROL, KINDS


@pytest.mark.parametrize("kind", ["byte-level", "llama2"])
def test_merges_are_ranked_in_their_order_beside_characters(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.get_vocab()
    size = tokenizer.get_vocab_size() + 10  # tables are often longer than their tokenizer's
    stop = ids["</s>"]
    ranks = ranks_of(Text(tokenizer.to_str(), TextConfig((stop,))), size)
    assert ranks.shape == (size,)
    assert ranks[stop] == 0
    others = [ids[token] for token in (*CONTROL, "<think>", "xylophone") if token != "</s>"]
    assert (ranks[[*others, size - 1]] == size).all()
    chosen = most_frequent(np.zeros(size), ranks, 300)
    assert np.all(np.diff(chosen) > 0)
    assert stop in chosen
    assert (
        max(ranks[ids["n"]], ranks[ids["t"]]) < 320
    )  # behind bytes, if at all, though their ids may be high
    merges = [token for token in ids if len(token) > 1 and token.isalpha() and token not in ("xylophone",)]
    first, last = (f(merges, key=lambda token: ids[token]) for f in (min, max))
    assert ranks[ids[first]] < ranks[ids[last]]


def test_a_tokenizer_without_merges_is_ranked_by_ids() -> None:
    tokenizer = KINDS["unigram"]()
    size = tokenizer.get_vocab_size()
    ranks = ranks_of(Text(tokenizer.to_str(), TextConfig(())), size)
    plain = [token for token in range(size) if ranks[token] < size]
    assert ranks[plain].tolist() == list(range(len(plain)))


def test_counts_come_before_the_order() -> None:
    counts, ranks = np.zeros(1000), np.arange(1000)
    assert most_frequent(counts, ranks, 3).tolist() == [0, 1, 2]
    counts[[700, 900]] = 500
    assert most_frequent(counts, ranks, 4).tolist() == [0, 1, 700, 900]
