"""Which tree pays: tau, the parts of a round and the speed of several tree shapes, on the same prompts.

    python -m benchmarks.trees smollm2-135m poss-2 --prompts DIALOGUES.npz --tree 5,4,11 --tree 4,3,5

A tree is DEPTH,TOP_K,NODES. The target is exported once, a draft graph for each shape; with each,
speculative and target-only answers take turns. Choose the shape on prompts that no result is reported on.
"""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment, questions
from poss_export.bundling.tuning import capacity_for, exported, measure_tree
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import load_drafter
from poss_export.errors import InputError
from poss_export.targets.checkpoint import open_target


def parse_tree(text: str) -> TreeShape:
    """Return the shape that DEPTH,TOP_K,NODES names."""
    try:
        depth, top_k, nodes = map(int, text.split(","))
    except ValueError as error:
        raise InputError(f"tree {text!r}: expected DEPTH,TOP_K,NODES, such as 5,4,11") from error
    return TreeShape(depth, top_k, nodes)


def tree_name(tree: TreeShape) -> str:
    """Return DEPTH,TOP_K,NODES, as `parse_tree` reads it."""
    return f"{tree.depth},{tree.top_k},{tree.nodes}"


@click.command(help=__doc__.partition("\n")[0])
@click.argument("target")
@click.argument("drafter")
@click.option("--tree", "trees", metavar="DEPTH,TOP_K,NODES", multiple=True, required=True)
@questions.options
@click.option("--max-new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    target: str,
    drafter: str,
    trees: tuple[str, ...],
    prompts: tuple[Path, ...],
    limit: int | None,
    max_new_tokens: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    shapes = [parse_tree(text) for text in trees]
    opened, checkpoint = open_target(target), load_drafter(drafter)
    asked = questions.load(opened.text, prompts, limit)
    ids = [question.ids for question in asked]
    with exported(opened, capacity_for(ids, max_new_tokens, shapes)) as bundle:
        found = [measure_tree(bundle, opened, checkpoint, shape, ids, max_new_tokens) for shape in shapes]
    table = Table("depth", "top-k", "nodes", "tau", "target ms", "draft ms", "plain ms", "ratio", box=None)
    for figures in found:
        table.add_row(
            *(str(value) for value in figures["tree"].values()),
            *(f"{figures[name]:.2f}" for name in ("tau", "target", "draft", "plain", "ratio")),
        )
    Console().print(table)
    if report is not None:
        environment.write(report, machine, {"trees": found})


if __name__ == "__main__":
    environment.run(main)
