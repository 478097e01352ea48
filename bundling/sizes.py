"""What a bundle will take, in bytes: weights, caches, engines and their builds."""

from poss_export.config import Precision, Scheme, TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import GraphName
from poss_export.quantisation.rounding import BYTES
from poss_export.targets.checkpoint import Target


def draft_parameters(target: Target, checkpoint: DrafterCheckpoint, tree: TreeShape) -> int:
    """Return the weights in the draft graph: specialists that the tree uses, rows of the target's tables."""
    drafter, config = checkpoint.drafter, checkpoint.drafter.config
    # Parallel drafting looks up no embedding: its graph holds the LM head's rows only.
    one_table = target.config.tied_embeddings or config.drafting == "parallel"
    tables = (1 if one_table else 2) * config.draft_vocab_size * config.hidden_size
    unused = drafter.specialists[config.specialist(tree.depth) + 1 :]
    return checkpoint.parameters - sum(weight.numel() for weight in unused.parameters()) + tables


def target_bytes(target: Target, precision: Precision, scheme: Scheme | None) -> int:
    """Return the size of the target's weights, of which `scheme` is how they are quantised."""
    table = target.config.vocab_size * target.config.hidden_size
    return _weight_bytes(target.parameters, table, target.config.tied_embeddings, precision, scheme)


def draft_bytes(
    target: Target,
    checkpoint: DrafterCheckpoint,
    tree: TreeShape,
    precision: Precision,
    scheme: Scheme | None,
) -> int:
    """Return the size of the weights of the draft graph, likewise."""
    config = checkpoint.drafter.config
    table = config.draft_vocab_size * config.hidden_size if config.drafting == "tree" else 0
    parameters = draft_parameters(target, checkpoint, tree)
    return _weight_bytes(parameters, table, target.config.tied_embeddings, precision, scheme)


def _weight_bytes(
    parameters: int, table: int, tied: bool, precision: Precision, scheme: Scheme | None
) -> int:
    """Return the size of weights, of which `table` are looked up, and read by the head too if `tied`.

    Layers that turn out to be sensitive are not known yet.
    """
    item = 4 if precision == "fp32" else 2
    if scheme is None:
        return item * parameters
    head = table if tied else 0  # its quantised copy
    return round(item * table + BYTES[scheme] * (parameters - table + head))


def engine_bytes(graph: GraphName, weights: int, profiles: int, precision: Precision) -> dict[str, int]:
    """Return about what an engine and its build will take, for a graph of `weights` bytes.

    The factors are those of the builds in docs/engines.md: a profile has kernels of its own; the builder
    holds the weights several times, beside its libraries.
    """
    share, kernels = {"target": (1.05, 3_500_000), "draft": (1.3, 9_000_000)}[graph]
    copies = 3 if precision == "fp32" else 4
    return {
        "engine": int(share * weights) + profiles * kernels,
        "peak_memory": 310_000_000 + copies * weights,
    }
