"""Consecutive draft rounds of one graph, each compared with a full recomputation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from tests.reference_round import reference_round

CAPACITY = 64
# Rounds: (rows in the call, valid rows of each sequence). A prompt first, then what rounds of a tree of
# depth 5 may accept: 1 to 6 rows, as they are and padded.
ONE_BATCH = [(17, [17]), *((n, [n]) for n in range(1, 7)), *((6, [n]) for n in range(1, 6))]
TWO_BATCHES = [(9, [9, 4]), *((6, [n, 7 - n]) for n in range(1, 7)), (1, [1, 1])]

# run(embeddings, features, row_count, past_length, *past) -> the contract's outputs
Run = Callable[..., Sequence[NDArray[np.generic]]]


def check_rounds(
    run: Run,
    drafter: Drafter,
    tree: TreeShape,
    embed: Tensor,
    head: Tensor,
    plan: Sequence[tuple[int, list[int]]],
    tolerance: float = 1e-5,
    dtype: type[np.generic] = np.float32,
) -> None:
    """Assert equal tokens and parents, and scores within `tolerance`, in every round of `plan`."""
    config = drafter.config
    random = torch.Generator().manual_seed(4)
    batch, hidden = len(plan[0][1]), config.hidden_size
    shape = (batch, config.num_kv_heads, CAPACITY, config.head_dim)
    caches = [np.zeros(shape, dtype) for _ in range(2 * config.num_caches(tree.depth))]
    history = [torch.zeros(2, 0, hidden) for _ in range(batch)]  # embeddings and features of all valid rows
    for rows, counts in plan:
        new = torch.randn(2, batch, rows, hidden, generator=random)
        for b, count in enumerate(counts):
            new[:, b, count:] *= 100  # padding must not show
        lengths = [old.shape[1] for old in history]
        outputs = run(*(x.numpy().astype(dtype) for x in new), np.array(counts), np.array(lengths), *caches)
        tokens, parents, scores, *caches = outputs
        for b, count in enumerate(counts):
            history[b] = torch.cat((history[b], new[:, b, :count]), dim=1)
            expected = reference_round(drafter, tree, embed, head, *history[b])
            where = f"{count} of {rows} rows behind {lengths[b]}"
            assert (tokens[b].tolist(), parents[b].tolist()) == expected[:2], where
            np.testing.assert_allclose(scores[b], expected[2], rtol=tolerance, atol=tolerance, err_msg=where)
