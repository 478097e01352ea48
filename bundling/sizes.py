"""What a bundle will take, in bytes: weights, caches, engines and their builds."""

from collections.abc import Sequence

from poss_export.config import Precision, Scheme, TreeShape
from poss_export.drafter_config import DrafterConfig
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import GraphName, Profile
from poss_export.quantisation.rounding import BYTES
from poss_export.targets.checkpoint import Target


def draft_parameters(target: Target, checkpoint: DrafterCheckpoint, tree: TreeShape) -> int:
    """Return the weights in the draft graph: specialists that the tree uses, rows of the target's tables."""
    drafter, config = checkpoint.drafter, checkpoint.drafter.config
    # Parallel drafting looks up no embedding of what it drafted.
    embeds = config.drafting == "tree" and not (config.own_embeddings or _is_tied(target, config))
    tables = (embeds + (not config.own_head)) * config.draft_vocab_size * config.hidden_size
    used = config.specialist(tree.depth) + 1
    unused = set(drafter.specialists[used:].parameters()) - set(drafter.specialists[:used].parameters())
    return checkpoint.parameters - sum(weight.numel() for weight in unused) + tables


def _is_tied(target: Target, drafter: DrafterConfig) -> bool:
    """Whether the draft graph reads one table as embeddings and as head."""
    return target.config.tied_embeddings and not drafter.own_head


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
    rows = config.draft_vocab_size if config.drafting == "tree" else 0
    table = (config.vocab_size if config.own_embeddings else rows) * config.hidden_size
    parameters = draft_parameters(target, checkpoint, tree)
    return _weight_bytes(parameters, table, _is_tied(target, config), precision, scheme)


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


def engine_bytes(
    graph: GraphName, weights: int, profiles: Sequence[Profile], precision: Precision
) -> dict[str, int]:
    """Return about what an engine and its build will take, for a graph of `weights` bytes.

    The factors are those of the builds in docs/engines.md: a profile has kernels of its own, more of them in
    a larger target; one of width 1 has the weights once more; the builder holds them several times, beside
    its libraries.
    """
    share, growth, kernels = {"target": (1.0, 0.02, 3_500_000), "draft": (1.3, 0.0, 9_000_000)}[graph]
    # Of small weights everything that is made of them is there at once, of large ones less and less.
    copies, fewer, rest = (3.0, 2.0, 330_000_000) if precision == "fp32" else (4.0, 2.5, 220_000_000)
    single = any(profile.fixed and profile.rows == 1 for profile in profiles)
    return {
        "engine": int((share + growth * len(profiles) + single) * weights) + len(profiles) * kernels,
        "peak_memory": int(
            310_000_000 + min(copies * weights, rest + fewer * weights) + 1.5 * single * weights
        ),
    }
