"""What a file leaves open, and only drafting shows: which of its two readings drafts better."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.drafters.model import Drafter
from poss_export.targets.decoder import Decoder, causal_attend, merge_heads, split_heads
from poss_export.targets.mixing import mix
from poss_export.targets.rope import rope_tables, rotate

TOKENS = 64  # of a text that both readings draft
_DEPTH, _APART = 4, 4  # tokens of a drafted chain, and between the rows where they begin


@torch.no_grad()
def settle_feedback(decoder: Decoder, drafter: Drafter, ids: Tensor) -> float:
    """Let what a drafter feeds back pass its final norm, or not, whichever drafts a text better.

    Args:
        decoder: the target.
        drafter: one that drafts level by level; its configuration is changed.
        ids: int64 `[tokens]`, a text of at least 16 tokens.

    Returns:
        By how many nats a token the chosen reading is better.
    """
    embeddings = decoder.embed(ids) if drafter.embeddings is None else F.embedding(ids, drafter.embeddings)
    attend = causal_attend(decoder.config, len(ids), embeddings.dtype)
    _, taps = decoder.hidden_and_read(ids[None], attend, drafter.config.taps)
    head = decoder.head_rows(drafter.draft_ids) if drafter.head is None else drafter.head
    scores = dict[bool, float]()
    for normed in (False, True):
        drafter.settle(replace(drafter.config, feed_back_normed=normed))
        scores[normed] = _chains(drafter, embeddings, taps[0], ids, head)
    best = max(scores, key=lambda normed: scores[normed])
    drafter.settle(replace(drafter.config, feed_back_normed=best))
    return scores[best] - scores[not best]


def _chains(drafter: Drafter, embeddings: Tensor, taps: Tensor, ids: Tensor, head: Tensor) -> float:
    """Return the mean log-probability of tokens of the text that are drafted from fed-back states."""
    found = list[Tensor]()
    for last in range(_APART, len(ids) - _DEPTH - 1, _APART):
        seen = slice(0, last + 1)
        rows = drafter.fusion(embeddings[1:][seen], drafter.fusion.project(taps[seen]))
        for step in range(_DEPTH):
            predict, feedback = _draft(drafter, step + 1, rows)
            following = drafter.draft_ids == ids[last + step + 2]
            if step > 0 and bool(following.any()):  # the first step has nothing fed back
                found.append((head @ predict).float().log_softmax(-1)[following][0])
            fused = drafter.fusion(embeddings[last + step + 2], feedback)
            rows = torch.cat((rows, fused[None]))
    return float(torch.stack(found).mean()) if found else 0.0


def _draft(drafter: Drafter, position: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (predict, feedback) `[hidden]` of the last of the rows `[n, row_size]`, by causal attention."""
    config, x = drafter.config, rows[None]
    tables = rope_tables(config.rope, config.head_dim, len(rows))
    for layer in (*drafter.shared_layers, drafter.specialist(position)):
        q, k, v = (split_heads(one, config.head_dim) for one in (layer.q(x), *layer.key_value(x)))
        mixed = merge_heads(mix(rotate(q, *tables), rotate(k, *tables), v, None))
        x, feedback = layer.finish(x, mixed)
    return x[0, -1], feedback[0, -1]
