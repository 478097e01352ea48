"""`poss-export build`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click
from click.core import ParameterSource

from poss_export.cli import options
from poss_export.cli.printing import log, megabytes, print_facts
from poss_export.cli.progress import show_progress
from poss_export.config import CacheForm, Precision, Scheme, TreeShape
from poss_export.engine_spec import FLAVOURS, Backend, EngineEntry, EngineOptions, GraphName
from poss_export.errors import InputError

if TYPE_CHECKING:
    from poss_export.bundling.build import Plan
    from poss_export.bundling.quantise import QuantiseRequest
    from poss_export.manifest import Manifest

# Options of `build` that say nothing of graphs in floating point.
_QUALITY_OPTIONS = (
    *("observer", "smoothing", "budget", "held_out", "held_out_prompts"),
    *("max_perplexity", "min_agreement", "min_tau"),
)

_TARGET = (
    click.option(
        "--capacity",
        type=int,
        show_default="2048, or the target's longest context",
        help="Tokens of prompt and answer together.",
    ),
    click.option(
        "--cache-form",
        type=click.Choice(["shared", "static"]),
        show_default="shared, or static for TensorRT",
        help="shared: ONNX Runtime on the CPU; static: standard operators, for GPUs.",
    ),
)
_DRAFTER = (
    click.option(
        "--drafter", help="Shipped drafter or folder; left out: the bundle decodes with the target only."
    ),
    options.POSITIONS,
    click.option("--tree-depth", default=TreeShape.depth, help="Levels of the drafted tree."),
    click.option("--top-k", default=TreeShape.top_k, help="Beam of the drafted tree."),
    click.option(
        "--tree-nodes", default=TreeShape.nodes, help="Drafted tokens that the target verifies at once."
    ),
)
_LAYER = "LAYER=PRECISION"
_PRECISION = (
    click.option(
        "--precision",
        type=click.Choice([*get_args(Precision), *get_args(Scheme)]),
        default="fp32",
        help="w8a8: 8-bit weights and activations; int8, int4: weights only; fp8: TensorRT.",
    ),
    click.option("--draft-precision", type=click.Choice(get_args(Scheme)), help="Quantise the drafter."),
    click.option(
        "--samples",
        metavar="RECORD",
        type=options.FILE,
        help="Real rounds, from `poss-export calibrate`; w8a8 and fp8 need them, int8 and int4 gain.",
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
        type=click.Choice(["min-max", "percentile", "entropy", "mse"]),
        default="min-max",
        help="How far the range of an activation reaches.",
    ),
    click.option(
        "--smoothing/--no-smoothing",
        default=True,
        help="Move outliers of activations into weights, where that makes the output more accurate.",
    ),
    click.option(
        "--budget",
        default=0.01,
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
    click.option("--max-perplexity", default=1.05, help="Of the quantised target, times the float one's."),
    click.option("--min-agreement", default=0.85, help="Share of tokens with the same likeliest next one."),
    click.option("--min-tau", default=0.85, help="Of the quantised pair, times the float pair's."),
)
_ENGINES = (
    click.option(
        "--backend",
        type=click.Choice(["onnxruntime", *FLAVOURS]),
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
    click.option("--dry-run", is_flag=True, help="Print the plan with its sizes, write nothing."),
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
    tree_depth: int,
    top_k: int,
    tree_nodes: int,
    precision: Precision | Scheme,
    draft_precision: Scheme | None,
    samples: Path | None,
    layers: tuple[str, ...],
    draft_layers: tuple[str, ...],
    observer: str,
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
    tree = TreeShape(tree_depth, top_k, tree_nodes)
    if drafter is None and positions_per_specialist is not None:
        raise InputError(
            "positions per specialist are a drafter's; name it with --drafter, or leave them out"
        )
    from poss_export.bundling.build import build_bundle, check_output, plan_build
    from poss_export.drafters.checkpoint import load_drafter
    from poss_export.exporters.engine_build import request_engines
    from poss_export.targets.checkpoint import open_target

    check_output(bundle)
    form = cache_form or ("shared" if backend == "onnxruntime" else "static")
    quantise = _quantise_request(precision, form, ctx.params)
    built = EngineOptions(
        compute_capabilities,
        optimization_level,
        version_compatible,
        hardware_compatible,
        strip_weights,
        weight_streaming,
    )
    engines = None
    if backend != "onnxruntime":
        engines = request_engines(backend, built, engine_capacities, timing_cache)
    elif timing_cache or engine_capacities or built != EngineOptions():
        raise InputError("options of engines need a --backend that builds some: tensorrt-rtx or tensorrt")
    plan = plan_build(
        open_target(target),
        None if drafter is None else load_drafter(drafter, positions_per_specialist),
        tree=tree,
        capacity=capacity,
        precision=_float_type(precision, form),
        cache_form=form,
        engines=engines,
        quantise=quantise,
    )
    _warn_of_other_target(plan)
    if dry_run:
        print_facts(plan.to_dict())
        return
    with show_progress() as progress:
        manifest = build_bundle(
            plan, bundle, argv=ctx.meta["argv"], force=force, report=log, progress=progress
        )
    _print_bundle(bundle, manifest)


def _print_bundle(folder: Path, manifest: "Manifest") -> None:
    figures = ", ".join(f"{name} {value:.1e}" for name, value in manifest.parity.items())
    click.echo(f"{folder}: {megabytes(sum(f.size for f in manifest.files.values()))}, parity {figures}")
    if manifest.quality is not None:
        print_facts(_quality_facts(manifest.quality))
    for entry in manifest.engines:
        _print_engine(entry, manifest.files[entry.spec.file].size)


def _float_type(precision: "Precision | Scheme", form: CacheForm) -> Precision:
    """Return what a graph computes in where it is not quantised."""
    if precision in get_args(Precision):
        return cast(Precision, precision)
    return "fp32" if form == "shared" else "fp16"


def _quantise_request(
    precision: "Precision | Scheme", form: CacheForm, options: Mapping[str, Any]
) -> "QuantiseRequest | None":
    """Return what the command line asks of quantised graphs, or None."""
    asked: dict[GraphName, Scheme | None] = {
        "target": cast(Scheme, precision) if precision in get_args(Scheme) else None,
        "draft": options["draft_precision"],
    }
    layers = {"target": options["layers"], "draft": options["draft_layers"]}
    for graph, scheme in asked.items():
        if layers[graph] and scheme is None:
            raise InputError(f"precisions of layers are of a quantised {graph}: name its precision too")
    if not any(asked.values()):
        _refuse_given(
            _QUALITY_OPTIONS, "is of quantised graphs: name a --precision such as w8a8, or leave it out"
        )
        if options["samples"] is None:
            return None
    from poss_export.bundling.quantise import QuantiseRequest
    from poss_export.calibration.record import load_record
    from poss_export.evaluation.checks import PROMPTS
    from poss_export.evaluation.quality import HELD_OUT, Thresholds
    from poss_export.prompts import read_prompts
    from poss_export.quantisation.decisions import GraphRequest

    fallback: Scheme | None = "int8" if form == "shared" else None
    file = options["held_out_prompts"]
    prompts = PROMPTS if file is None else tuple(read_prompts(file))
    if not prompts:
        raise InputError(f"{str(file)!r} is empty; write prompts into it, or leave it out")
    return QuantiseRequest(
        graphs={
            graph: GraphRequest(
                scheme,
                # Few models bear a head in 4 bits.
                layers=((("head", fallback),) if scheme == "int4" else ())
                + tuple(_layer_precision(text) for text in layers[graph]),
                observer=options["observer"],
                smoothing=options["smoothing"],
                budget=options["budget"],
                fallback=fallback,
            )
            for graph, scheme in asked.items()
            if scheme is not None
        },
        samples=None if options["samples"] is None else load_record(options["samples"]),
        thresholds=Thresholds(options["max_perplexity"], options["min_agreement"], options["min_tau"]),
        text=options["held_out"] or HELD_OUT,
        prompts=prompts,
    )


def _refuse_given(names: Sequence[str], reason: str) -> None:
    """Raise InputError where one of these options of the running command was typed."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise InputError(f"{option.opts[0]} {reason}")


def _layer_precision(text: str) -> "tuple[str, Scheme | None]":
    """Read "head=int8"."""
    pattern, _, precision = text.rpartition("=")
    if not pattern or precision not in (*get_args(Scheme), "float"):
        raise InputError(
            f"layer precision {text!r}: expected LAYER=PRECISION, such as head=int8, with one of "
            f"{', '.join(get_args(Scheme))} or float"
        )
    return pattern, None if precision == "float" else cast(Scheme, precision)


def _quality_facts(quality: Mapping[str, Any]) -> dict[str, str]:
    """Return what quantising costs, beside the pair in floating point."""
    text, rounds, widths = quality["text"], quality["rounds"], quality.get("widths")
    facts = {
        "perplexity": f"{text['perplexity']:.3f}, in floating point {text['reference_perplexity']:.3f}",
        "divergence": f"{text['divergence']:.4f} nats a token",
        "agreement": f"{text['agreement']:.1%} of {text['tokens']} tokens",
    }
    if rounds:
        facts["tau"] = f"{rounds['tau']:.2f}, in floating point {rounds['reference_tau']:.2f}"
        facts["equal answers"] = f"{rounds['equal_answers']} of {rounds['prompts']}"
    if widths:
        least = widths["least_width"]
        in_chains = "no, only in chains (--top-k 1)" if least else "no"
        facts["width-independent"] = f"from {least} tokens a call on" if least else "no"
        facts["exact in trees"] = "yes" if widths["tree_exact"] else in_chains
    return facts


def _print_engine(entry: EngineEntry, size: int) -> None:
    kinds = Counter(entry.attention.values())
    attention = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "written out in the graph"
    click.echo(
        f"{entry.spec.file}: {megabytes(size)} in {entry.build_seconds:.1f} s, "
        f"peak memory {megabytes(entry.peak_memory)}, attention: {attention}"
    )


def _warn_of_other_target(plan: "Plan") -> None:
    if plan.drafter is not None and plan.drafter.target_sha256 not in (None, plan.target.sha256):
        log(
            f"warning: drafter {plan.drafter.name!r} was trained for other weights than those of "
            f"{plan.target.name!r}; output stays right, but fewer tokens may be accepted"
        )
