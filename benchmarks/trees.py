"""Which tree pays: tau, the parts of a round and the speed of several tree shapes, on the same prompts.

    python -m benchmarks.trees smollm2-135m poss-2 --prompts DIALOGUES.npz --tree 5,4,11 --tree 4,3,5

A tree is DEPTH,TOP_K,NODES. Each shape is a bundle of its own; within it, speculative and target-only
answers take turns. Choose the shape on prompts that no result is reported on.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import environment, questions
from benchmarks.cost import parts, rounds
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint, load_drafter
from poss_export.errors import InputError
from poss_export.exporters.build import build_bundle, plan_build
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import Target, open_target

CAPACITY = 1024  # tokens


def parse_tree(text: str) -> TreeShape:
    """Return the shape that DEPTH,TOP_K,NODES names."""
    try:
        depth, top_k, nodes = map(int, text.split(","))
    except ValueError as error:
        raise InputError(f"tree {text!r}: expected DEPTH,TOP_K,NODES, such as 5,4,11") from error
    return TreeShape(depth, top_k, nodes)


def measure(
    target: Target,
    drafter: DrafterCheckpoint,
    tree: TreeShape,
    prompts: tuple[Path, ...],
    limit: int | None,
    tokens: int,
) -> dict[str, Any]:
    """Return the figures of one shape; milliseconds, and `ratio` of decoding speeds."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        plan = plan_build(
            target, drafter, tree=tree, capacity=CAPACITY, precision="fp32", cache_form="shared"
        )
        build_bundle(plan, bundle, argv=(), force=False, report=lambda line: None)
        with open_bundle(bundle, threads=environment.cores()) as engines:
            spoken = rounds(engines, questions.load(engines.text, prompts, limit), tokens)
    speculative, plain = map(parts, spoken)
    ratio = speculative["tau"] * plain["round"] / speculative["round"]
    return {"tree": asdict(tree), **speculative, "plain": plain["round"], "ratio": ratio}


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
    found = [measure(opened, checkpoint, shape, prompts, limit, max_new_tokens) for shape in shapes]
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
