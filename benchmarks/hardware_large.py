"""What calls of a target of 8B parameters cost on a device, beside a draft round; random weights, fp16.

    python -m benchmarks.hardware_large write GRAPHS && python -m benchmarks.hardware_large measure GRAPHS

All layers read the weights of one, so that the graph takes 2.5 GB in place of 16: a layer's 436 MB are more
than a GPU's caches hold, so every layer still reads them from memory.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import numpy as np

from benchmarks import environment
from poss_export.config import TargetConfig, TreeShape
from poss_export.contract import draft_contract, target_contract
from poss_export.drafter_config import DrafterConfig
from poss_export.errors import InputError
from poss_export.evaluation.latency import round_times, target_times
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession, Provider
from poss_export.training.presets import DrafterChoices, preset

if TYPE_CHECKING:
    from poss_export.drafters.model import Drafter
    from poss_export.targets.decoder import Decoder

SHAPES = {
    "8b": TargetConfig("llama", 128_256, 4096, 14_336, 32, 32, 8, 128, 1e-5, 8192),
    "tiny": TargetConfig("llama", 512, 64, 96, 3, 4, 2, 16, 1e-5, 1024),
}
DRAFT_VOCAB = {"8b": 32_000, "tiny": 128}
TREE = TreeShape()
CAPACITY, CONTEXT = 1024, 512  # tokens
WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
DONE = "done"  # written last: which shape the folder holds
_SPREAD = 0.02  # of weights, so that activations stay within fp16


def random_decoder(config: TargetConfig) -> "Decoder":
    """Return a decoder in fp16 all of whose layers are one."""
    import torch
    from torch import nn

    from poss_export.targets.decoder import Decoder

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    decoder = Decoder(replace(config, num_layers=1)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    for weight in decoder.parameters():
        weight.fill_(1) if weight.dim() == 1 else weight.uniform_(-_SPREAD, _SPREAD)
    decoder.config = config
    decoder.layers = nn.ModuleList([decoder.layers[0]] * config.num_layers)
    return decoder


def drafter_config(shape: str) -> DrafterConfig:
    """Return EAGLE for a target of this shape."""
    return preset("eagle").drafter_config(SHAPES[shape], DRAFT_VOCAB[shape], DrafterChoices())


def random_drafter(config: DrafterConfig) -> "Drafter":
    """Return a drafter in fp16."""
    import torch

    from poss_export.drafters.model import Drafter

    drafter = Drafter(config).to(torch.float16).eval().requires_grad_(False)
    for weight in drafter.parameters():
        weight.fill_(1) if weight.dim() == 1 else weight.uniform_(-_SPREAD, _SPREAD)
    return drafter


def write_graphs(folder: Path, shape: str) -> None:
    """Write both graphs, and the embedding table, into a new folder."""
    from poss_export.drafters.make_round import make_round
    from poss_export.exporters.drafter import export_drafter
    from poss_export.exporters.target import TargetGraph
    from poss_export.exporters.tracing import export_graph
    from poss_export.progress import silent
    from poss_export.targets.weights import weights_of

    if folder.exists():
        raise InputError(f"{str(folder)!r} exists; give a new folder")
    folder.mkdir(parents=True)
    config = SHAPES[shape]
    decoder = random_decoder(config)
    # Not by `export_target`, which takes no layers that share weights.
    graph = TargetGraph(decoder, "static", CAPACITY)
    contract = target_contract(config, "fp16")
    export_graph(
        graph,
        contract,
        folder / "target.onnx",
        {"capacity": CAPACITY},
        precision="fp16",
        weights=weights_of(graph),
        progress=silent,
    )
    drafter = random_drafter(drafter_config(shape))
    rows = drafter.draft_ids
    drawn = make_round(drafter, TREE, decoder.embed_tokens[rows], decoder.lm_head[rows])
    export_drafter(drawn, folder / "draft.onnx", cache_form="static", precision="fp16", capacity=CAPACITY)
    np.save(folder / "embeddings.npy", decoder.embed_tokens.numpy())
    (folder / DONE).write_text(shape, encoding="utf-8")


def measure_graphs(folder: Path, options: OrtOptions, repeats: int) -> dict[str, object]:
    """Return median ms of target calls by width, of draft calls by new rows, and of a whole round."""
    shape = (folder / DONE).read_text(encoding="utf-8")
    config = SHAPES[shape]
    drafted = drafter_config(shape)
    table = np.load(folder / "embeddings.npy", mmap_mode="r")
    of_target = target_contract(config, "fp16"), CAPACITY, options
    of_draft = draft_contract(drafted, TREE, "fp16"), CAPACITY, options, table
    ids = np.random.default_rng(0).integers(0, config.vocab_size, CONTEXT)
    with OrtTargetSession(folder / "target.onnx", *of_target) as target:
        widths = target_times(target, config.vocab_size, CONTEXT, WIDTHS, repeats)
        with OrtDraftSession(folder / "draft.onnx", *of_draft) as drafter:
            drafts, whole = round_times(target, drafter, ids, TREE.depth, repeats)
    return {
        "shape": shape,
        "context": CONTEXT,
        "milliseconds_by_width": {width: statistics.median(times) for width, times in widths.items()},
        "draft_milliseconds_by_rows": {rows: statistics.median(times) for rows, times in drafts.items()},
        "round_milliseconds": statistics.median(whole),
        "tree_width": TREE.width,
    }


@click.group(help=__doc__.partition("\n")[0])
def main() -> None:
    """Hold the two commands."""


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), default="8b", show_default=True)
def write(folder: Path, shape: str) -> None:
    """Write the graphs into a new folder."""
    write_graphs(folder, shape)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--provider", type=click.Choice(get_args(Provider)), default="cuda", show_default=True)
@click.option("--repeats", default=20, show_default=True, help="Calls of each kind.")
def measure(folder: Path, provider: Provider, repeats: int) -> None:
    """Print what calls take, as one line of JSON."""
    click.echo(json.dumps(measure_graphs(folder, OrtOptions(provider), repeats)))


if __name__ == "__main__":
    environment.run(main)
