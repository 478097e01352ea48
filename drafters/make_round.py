"""The round that a drafter's configuration asks for."""

from torch import Tensor

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.drafters.parallel_round import ParallelRound
from poss_export.drafters.round import DraftRound
from poss_export.drafters.tree_round import TapsRound, TreeRound


def make_round(drafter: Drafter, tree: TreeShape, embed_rows: Tensor, head_rows: Tensor) -> DraftRound:
    """Return a drafter's round.

    Args:
        drafter: its parts are shared, not copied.
        tree: size of the drafted tree.
        embed_rows: `[draft_vocab, hidden]`, rows `drafter.draft_ids` of the target's embedding table.
        head_rows: `[draft_vocab, hidden]`, the same rows of the target's LM head; pass `embed_rows` again
            where the two are tied, and the graph holds one table. A drafter's own tables come first.

    Raises:
        InputError: as `check_tree`.
    """
    head_rows = head_rows if drafter.head is None else drafter.head
    if drafter.config.drafting == "parallel":
        return ParallelRound(drafter, tree, head_rows)
    kind = TapsRound if drafter.config.reads_taps else TreeRound
    return kind(drafter, tree, embed_rows, head_rows)
