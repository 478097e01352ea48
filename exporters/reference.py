"""What PyTorch computes, for a comparison with the graphs: whole sequences, without the target's caches."""

import torch
from torch import Tensor

from poss_export.config import TreeShape
from poss_export.drafters.graph import DraftGraph
from poss_export.drafters.make_round import make_round
from poss_export.drafters.model import Drafter
from poss_export.drafters.round import DraftRound
from poss_export.reference import BRANCH, DRAFTED, PREFIX, Nodes, Reference
from poss_export.targets.decoder import Decoder, causal_attend


def round_beside(decoder: Decoder, drafter: Drafter, tree: TreeShape) -> DraftRound:
    """Return the drafter's round, with the rows of the target's tables that it needs and no more of them."""
    rows = drafter.draft_ids
    embed_rows = decoder.embed(rows)
    head_rows = embed_rows if decoder.config.tied_embeddings else decoder.head_rows(rows)
    return make_round(drafter, tree, embed_rows, head_rows).eval().requires_grad_(False)


@torch.no_grad()
def make_reference(decoder: Decoder, draft_round: DraftRound | None) -> Reference:
    """Run the decoder on random tokens, and the round beside it; the result keeps neither."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(decoder.config.vocab_size, (2, PREFIX + BRANCH), generator=generator)
    ids[1, :PREFIX] = ids[0, :PREFIX]
    attend = causal_attend(decoder.config, ids.shape[1], torch.float32)
    taps = () if draft_round is None else draft_round.config.taps
    hidden, features = decoder.hidden_and_read(ids, attend, taps)
    logits = decoder.head(hidden)
    trees: tuple[tuple[Nodes, Nodes, Nodes], ...] = ()
    if draft_round is not None:
        own = draft_round.config.own_embeddings
        trees = _draw_trees(draft_round, ids[:1] if own else decoder.embed(ids[:1]), features[:1])
    return Reference(ids.numpy(), features.numpy(), logits.numpy(), trees)


def _draw_trees(
    draft_round: DraftRound, tokens: Tensor, features: Tensor
) -> tuple[tuple[Nodes, Nodes, Nodes], ...]:
    """Return the trees behind the rows of each call.

    tokens: ids `[1, tokens]`, or embeddings `[1, tokens, hidden]`, as the graph reads them; features: `[1,
    tokens, feature_size]`.
    """
    config, capacity = draft_round.config, features.shape[1]
    graph = DraftGraph(draft_round, "static", capacity)
    shape = (1, config.num_kv_heads, capacity, config.head_dim)
    caches = [torch.zeros(shape) for _ in range(2 * config.num_caches(draft_round.tree.depth))]
    noise = torch.zeros(1, draft_round.tree.depth, config.draft_vocab_size)
    trees = []
    for rows in DRAFTED:
        following = slice(rows.start + 1, rows.stop + 1)
        counts = torch.tensor([rows.stop - rows.start]), torch.tensor([rows.start])
        results = graph(tokens[:, following], features[:, rows], *counts, noise, *caches)
        nodes, parents, scores, *caches = results
        trees.append((nodes[0].numpy(), parents[0].numpy(), scores[0].numpy()))
    return tuple(trees)
