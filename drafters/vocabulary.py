"""Which tokens are frequent: by their counts in text, and by the order in which a tokenizer was made."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.text import Text

USUAL_SIZE = 8192  # ids that a drafter trained here proposes, unless others are asked for
_PRIOR = 0.3  # weight of the order, as a share of the counted tokens


def most_frequent(counts: NDArray[Any], ranks: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the `size` likeliest ids, ascending.

    Counts alone over-fit a few hundred thousand tokens, so that a Zipf prior over the ranks is added to them;
    without any counts it decides alone.

    Args:
        counts: `[vocab]`, of each id in some text.
        ranks: `[vocab]`, of each id in text at large; 0 is the most frequent one's.
        size: 1 to `vocab`.
    """
    prior = 1.0 / (ranks + 256.0)
    likely = counts + _PRIOR * max(counts.sum(), 1) * prior / prior.sum()
    return np.sort(np.argsort(-likely, kind="stable")[:size])


def ranks_of(text: Text, vocab_size: int) -> NDArray[np.int64]:
    """Return the rank of each id, int64 `[vocab]`, by what its tokenizer tells: 0 is the most frequent one's.

    Byte-pair merges were found in the order of their frequency. What no merge makes, bytes and characters, is
    ranked beside them in the order of its ids: SentencePiece gives "," a high one. Stop tokens are in every
    answer and come first, other control tokens last. A tokenizer without merges is ranked by ids.
    """
    values = json.loads(text.tokenizer_json)
    added = {token["id"] for token in values.get("added_tokens", ())} - set(text.config.stop_ids)
    model = values["model"]
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else {}  # a list has no merges
    merged = dict[int, int]()
    for rank, merge in enumerate(model.get("merges", ())):
        made = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        merged.setdefault(vocabulary[made], rank)
    known = set(vocabulary.values() or range(len(model["vocab"]))) - added - merged.keys()
    places = {**merged, **{token: rank for rank, token in enumerate(sorted(known))}}
    places |= dict.fromkeys(text.config.stop_ids, 0)
    return np.array([places.get(token, vocab_size) for token in range(vocab_size)])
