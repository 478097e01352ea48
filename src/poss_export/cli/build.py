"""`poss-export build`."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click

from poss_export.bundling.request import BuildRequest, QuantisationOptions, plan
from poss_export.cli import options
from poss_export.cli.built import print_bundle
from poss_export.cli.printing import log, print_facts
from poss_export.cli.progress import show_progress
from poss_export.config import CacheForm, DraftPrecision, Observer, Precision, Scheme, Thresholds, TreeShape
from poss_export.engine_spec import BACKENDS, Backend, EngineOptions

_TARGET = (
    click.option(
        "--capacity",
        type=int,
        show_default="2048, or the target's longest context",
        help="Tokens of prompt and answer together.",
    ),
    click.option(
        "--cache-form",
        type=click.Choice(get_args(CacheForm)),
        show_default="shared, or static for TensorRT",
        help="shared: ONNX Runtime on the CPU; static: standard operators, for GPUs.",
    ),
)
_DRAFTER = (
    click.option(
        "--drafter", help="Shipped drafter or folder; left out: the bundle speculates by lookup alone."
    ),
    options.POSITIONS,
    options.DRAFT_VOCAB,
    click.option(
        "--acceptance/--no-acceptance",
        default=BuildRequest.acceptance,
        help="Learn from rounds on prompts what the drafter's scores are worth; without it every round "
        "verifies the whole tree, and a target need not fit into memory in float32.",
    ),
    click.option("--tree-depth", default=TreeShape.depth, help="Levels of the drafted tree."),
    click.option("--top-k", default=TreeShape.top_k, help="Beam of the drafted tree."),
    click.option(
        "--tree-nodes",
        type=int,
        show_default=f"{TreeShape.nodes}, or all that there are",
        help="Drafted tokens to choose from each round, the root not counted.",
    ),
)
_LAYER = "LAYER=PRECISION"
_PRECISION = (
    click.option(
        "--precision",
        type=click.Choice([*get_args(Precision), *get_args(Scheme)]),
        default="fp32",
        help="w8a8 to w8a32: 8-bit weights, activations in 8 bits or more (ONNX Runtime only); int8, int4: "
        "weights only; fp8: TensorRT.",
    ),
    click.option(
        "--draft-precision",
        type=click.Choice(get_args(DraftPrecision)),
        show_default="the faster of w8a8 and float for ONNX Runtime's CPU, else float",
        help="Quantise the drafter, or leave it in floating point; what is emitted does not depend on it.",
    ),
    click.option(
        "--samples",
        metavar="RECORD",
        type=options.FILE,
        show_default="a short record made by the build",
        help="Real rounds to learn from, from `poss-export calibrate`.",
    ),
    click.option(
        "--layer-precision",
        "layers",
        metavar=_LAYER,
        multiple=True,
        help="Another precision for some layers of the target: head, or a weight's name with wildcards; "
        "float leaves them as they are. Repeatable, the last that fits counts.",
    ),
    click.option(
        "--draft-layer-precision",
        "draft_layers",
        metavar=_LAYER,
        multiple=True,
        help="The same for the drafter: head, fusion, or a weight's name.",
    ),
    click.option(
        "--observer",
        type=click.Choice(get_args(Observer)),
        default=QuantisationOptions.observer,
        help="How far the range of an activation reaches.",
    ),
    click.option(
        "--smoothing/--no-smoothing",
        default=QuantisationOptions.smoothing,
        help="Move outliers of activations into weights, where that makes the output more accurate.",
    ),
    click.option(
        "--budget",
        default=QuantisationOptions.budget,
        help="Nats a token that rounded activations may cost the target; more sensitive layers get 8-bit "
        "weights only, or stay as they are for TensorRT.",
    ),
    click.option(
        "--held-out",
        metavar="FILE",
        type=options.FILE,
        show_default="one built in",
        help="Plain text that quality is measured on.",
    ),
    click.option(
        "--held-out-prompts",
        metavar="FILE",
        type=options.FILE,
        show_default="a few built in",
        help="JSON Lines of prompts that tau is measured on.",
    ),
    click.option(
        "--max-perplexity",
        default=Thresholds.perplexity,
        help="Of the quantised target, times the float one's.",
    ),
    click.option(
        "--min-agreement",
        default=Thresholds.agreement,
        help="Share of tokens with the same likeliest next one.",
    ),
    click.option("--min-tau", default=Thresholds.tau, help="Of the quantised pair, times the float pair's."),
)
_ENGINES = (
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="onnxruntime",
        help="Build engines for it, beside the graphs that ONNX Runtime reads.",
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        metavar="X.Y",
        multiple=True,
        help="TensorRT-RTX: of a device to build for; repeatable.",
    ),
    click.option(
        "--engine-capacity",
        "engine_capacities",
        metavar="TOKENS",
        type=int,
        multiple=True,
        help="Build engines with smaller caches too, for short contexts; repeatable.",
    ),
    click.option(
        "--engine-width",
        "engine_widths",
        metavar="ROWS",
        type=int,
        multiple=True,
        show_default="2, 4, 8, 16, up to the drafter's tree",
        help="Rows of a target call to make the engines for, beside the drafter's whole tree; repeatable.",
    ),
    click.option(
        "--engine-slots",
        metavar="N",
        type=int,
        default=1,
        help="Make the engines for calls of 2, 4, ... N answers too, which `serve` makes at once.",
    ),
    click.option("--optimization-level", type=int, show_default="3", help="TensorRT: 0 to 5."),
    click.option("--version-compatible", is_flag=True, help="TensorRT: later versions load the engines."),
    click.option(
        "--hardware-compatible", is_flag=True, help="TensorRT: other devices, from 8.0 on, load them."
    ),
    click.option("--strip-weights", is_flag=True, help="Leave the weights out; loading takes the graphs'."),
    click.option("--weight-streaming", is_flag=True, help="Let weights stay on the host while engines run."),
    click.option(
        "--timing-cache",
        metavar="FILE",
        type=options.FILE,
        help="TensorRT: kernel timings to read and extend.",
    ),
)
_OUTPUT = (
    click.option("-o", "--output", "bundle", metavar="BUNDLE", type=options.FILE, required=True),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print the plan and what its export will take, write nothing.",
    ),
    click.option("--force", is_flag=True, help="Replace the bundle that is there."),
)


@options.headed(
    {
        "Target": _TARGET,
        "Drafter": _DRAFTER,
        "Precision": _PRECISION,
        "Engines": _ENGINES,
        "Output": _OUTPUT,
    }
)
@click.command(cls=options.HeadedCommand, short_help="Export a target and a drafter, write a bundle.")
@click.argument("target")
@click.pass_context
def build(
    ctx: click.Context,
    target: str,
    capacity: int | None,
    cache_form: CacheForm | None,
    drafter: str | None,
    positions_per_specialist: int | None,
    draft_vocab_size: int | None,
    acceptance: bool,
    tree_depth: int,
    top_k: int,
    tree_nodes: int | None,
    precision: Precision | Scheme,
    draft_precision: DraftPrecision | None,
    samples: Path | None,
    layers: tuple[str, ...],
    draft_layers: tuple[str, ...],
    observer: Observer,
    smoothing: bool,
    budget: float,
    held_out: Path | None,
    held_out_prompts: Path | None,
    max_perplexity: float,
    min_agreement: float,
    min_tau: float,
    backend: Backend,
    compute_capabilities: tuple[str, ...],
    engine_capacities: tuple[int, ...],
    engine_widths: tuple[int, ...],
    engine_slots: int,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    strip_weights: bool,
    weight_streaming: bool,
    timing_cache: Path | None,
    bundle: Path,
    dry_run: bool,
    force: bool,
) -> None:
    """Export TARGET and a drafter, check the graphs against PyTorch, write BUNDLE.

    TARGET is smollm2-135m (embedded), a Hugging Face folder, or a .gguf file. A bundle that is there
    already is not built again where nothing changed; with another --backend it gets more engines.
    """
    from poss_export.bundling.build import build_bundle
    from poss_export.bundling.estimate import estimate_export
    from poss_export.bundling.staging import check_output

    check_output(bundle)
    request = BuildRequest(
        target=target,
        drafter=drafter,
        positions_per_specialist=positions_per_specialist,
        draft_vocab_size=draft_vocab_size,
        acceptance=acceptance,
        tree=TreeShape.of(tree_depth, top_k, tree_nodes),
        capacity=capacity,
        precision=precision,
        draft_precision=draft_precision,
        cache_form=cache_form,
        backend=backend,
        quantisation=QuantisationOptions(
            layers=layers,
            draft_layers=draft_layers,
            samples=samples,
            observer=observer,
            smoothing=smoothing,
            budget=budget,
            held_out=held_out,
            held_out_prompts=held_out_prompts,
            thresholds=Thresholds(max_perplexity, min_agreement, min_tau),
        ),
        engines=EngineOptions(
            compute_capabilities,
            optimization_level,
            version_compatible,
            hardware_compatible,
            strip_weights,
            weight_streaming,
        ),
        engine_capacities=engine_capacities,
        engine_widths=engine_widths,
        engine_slots=engine_slots,
        timing_cache=timing_cache,
    )
    planned = plan(request)
    for warning in planned.warnings:
        log(f"warning: {warning}")
    if dry_run:
        print_facts({**planned.to_dict(), "export": asdict(estimate_export(planned))})
        return
    with show_progress() as progress:
        manifest = build_bundle(
            planned, bundle, argv=ctx.meta["argv"], force=force, report=log, progress=progress
        )
    print_bundle(bundle, manifest)
