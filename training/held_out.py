"""What a drafter is worth on held-out dialogues, in chains and in trees."""

from typing import Any

from poss_export.config import TreeShape
from poss_export.progress import Progress
from poss_export.training.trainer import Trainer
from poss_export.training.tree_tau import tree_taus

DEPTH = 6
TREES = tuple(TreeShape(depth=DEPTH, top_k=4, nodes=nodes) for nodes in (8, 16, 32))


def judge(trainer: Trainer, report: Progress) -> dict[str, Any]:
    """Return acceptance by depth, and tau of chains and of trees by nodes; the drafter ends on the CPU."""
    acceptance = trainer.evaluate(DEPTH)
    report("trees on held-out dialogues", 0, 1, "")
    trees = tree_taus(trainer.drafter.cpu().eval(), trainer.corpus, TREES)
    report("trees on held-out dialogues", 1, 1, "")
    return {
        "alpha": [round(rate, 3) for rate in acceptance.alpha],
        "chain_tau": round(acceptance.chain_tau, 3),
        "tree_tau": {str(tree.nodes): round(tau, 3) for tree, tau in trees.items()},
    }
