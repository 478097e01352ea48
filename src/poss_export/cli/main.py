"""The command line: parse, call one function, show what it returns, turn errors into exit codes.

Results go to stdout, everything else to stderr. Heavy libraries are imported inside the commands.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click
from click.core import ParameterSource

from poss_export.config import (
    Alignment,
    CacheForm,
    Drafting,
    Fusion,
    MaskFeature,
    Precision,
    Scheme,
    TreeShape,
)
from poss_export.engine_spec import FLAVOURS, Backend, EngineEntry, EngineOptions, GraphName
from poss_export.errors import InputError, PossExportError
from poss_export.training.presets import PRESETS, Recipe

if TYPE_CHECKING:
    from rich.progress import TaskID

    from poss_export.bundling.build import Plan
    from poss_export.bundling.quantise import QuantiseRequest
    from poss_export.calibration.acceptance import AcceptanceCurves
    from poss_export.calibration.record import Record
    from poss_export.evaluation.checks import Check
    from poss_export.manifest import Manifest
    from poss_export.runtime.bundle import Bundle
    from poss_export.runtime.generation import Generation, Stream
    from poss_export.runtime.sessions.ort import Provider


# What the `export` extra brings; a deployment has none of it.
EXPORT_LIBRARIES = ("gguf", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch")
# Options of `train` that change its stages.
_FITS = ("before", "after")  # of an acceptance calibration
STAGE_FIELDS = ("steps", "step_decay", "token_weight", "top_weight", "feature_weight", "learning_rate")


# Options of `build` that say nothing of graphs in floating point.
_QUALITY_OPTIONS = (
    *("observer", "smoothing", "budget", "held_out", "held_out_prompts"),
    *("max_perplexity", "min_agreement", "min_tau"),
)


class Commands(click.Group):
    """A group whose commands end a `PossExportError` with its message and exit code.

    `context.meta["argv"]` is what was typed.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note what was typed, before anything is taken from it."""
        ctx.meta["argv"] = ["poss-export", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PossExportError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if error.name not in EXPORT_LIBRARIES:
                raise
            click.echo(
                f"error: this command needs {error.name}, which is not installed: "
                "pip install 'poss-export[export]'",
                err=True,
            )
            ctx.exit(1)


def _positions_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option of commands that open a drafter's folder."""
    return click.option(
        "--positions-per-specialist",
        type=click.IntRange(1),
        show_default="what the drafter says",
        help="Draft positions of each specialist of a PosS release (the 3 of PosS-3), whose files do not "
        "state it.",
    )(command)


def _running(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what runs a bundle."""
    options = (
        click.option(
            "--backend",
            type=click.Choice(["onnxruntime", *FLAVOURS]),
            default="onnxruntime",
            help="Run the graphs, or the engines that were built of them.",
        ),
        click.option(
            "--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Of ONNX Runtime."
        ),
        click.option("--threads", type=int, show_default="ONNX Runtime's choice", help="CPU threads."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _quantising(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how graphs are quantised, and what the result must reach."""
    layer = click.option(
        "--layer-precision",
        "layers",
        metavar="LAYER=PRECISION",
        multiple=True,
        help="Another precision for some layers of the target: head, or a weight's name with wildcards; "
        "float leaves them as they are. Repeatable, the last that fits counts.",
    )
    draft_layer = click.option(
        "--draft-layer-precision",
        "draft_layers",
        metavar="LAYER=PRECISION",
        multiple=True,
        help="The same for the drafter: head, fusion, or a weight's name.",
    )
    options = (
        click.option("--draft-precision", type=click.Choice(get_args(Scheme)), help="Quantise the drafter."),
        click.option(
            "--samples",
            metavar="RECORD",
            type=click.Path(path_type=Path),
            help="Real rounds, from `poss-export calibrate`; w8a8 and fp8 need them, int8 and int4 gain.",
        ),
        layer,
        draft_layer,
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
            type=click.Path(path_type=Path),
            show_default="one built in",
            help="Plain text that quality is measured on.",
        ),
        click.option(
            "--held-out-prompts",
            metavar="FILE",
            type=click.Path(path_type=Path),
            show_default="a few built in",
            help="JSON Lines of prompts that tau is measured on.",
        ),
        click.option(
            "--max-perplexity", default=1.05, help="Of the quantised target, times the float one's."
        ),
        click.option(
            "--min-agreement", default=0.85, help="Share of tokens with the same likeliest next one."
        ),
        click.option("--min-tau", default=0.85, help="Of the quantised pair, times the float pair's."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="poss-export")
def main() -> None:
    """Lossless speculative decoding on ONNX Runtime: export, build, verify, run."""


@main.command()
@click.argument("target")
@click.option(
    "--drafter", help="Shipped drafter or folder; left out: the bundle decodes with the target only."
)
@_positions_option
@click.option("-o", "--output", "bundle", metavar="BUNDLE", type=click.Path(path_type=Path), required=True)
@click.option("--tree-depth", default=TreeShape.depth, help="Levels of the drafted tree.")
@click.option("--top-k", default=TreeShape.top_k, help="Beam of the drafted tree.")
@click.option(
    "--tree-nodes", default=TreeShape.nodes, help="Drafted tokens that the target verifies at once."
)
@click.option(
    "--capacity",
    type=int,
    show_default="2048, or the target's longest context",
    help="Tokens of prompt and answer together.",
)
@click.option(
    "--precision",
    type=click.Choice([*get_args(Precision), *get_args(Scheme)]),
    default="fp32",
    help="w8a8: 8-bit weights and activations; int8, int4: weights only; fp8: TensorRT.",
)
@_quantising
@click.option(
    "--cache-form",
    type=click.Choice(["shared", "static"]),
    show_default="shared, or static for TensorRT",
    help="shared: ONNX Runtime on the CPU; static: standard operators, for GPUs.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", *FLAVOURS]),
    default="onnxruntime",
    help="Build engines for it, beside the graphs that ONNX Runtime reads.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    metavar="X.Y",
    multiple=True,
    help="TensorRT-RTX: of a device to build for; repeatable.",
)
@click.option(
    "--engine-capacity",
    "capacities",
    metavar="TOKENS",
    type=int,
    multiple=True,
    help="Build engines with smaller caches too, for short contexts; repeatable.",
)
@click.option("--optimization-level", type=int, show_default="3", help="TensorRT: 0 to 5.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: later versions load the engines.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: other devices, from 8.0 on, load them.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out; loading takes the graphs'.")
@click.option("--weight-streaming", is_flag=True, help="Let weights stay on the host while engines run.")
@click.option(
    "--timing-cache",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TensorRT: kernel timings to read and extend.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan with its sizes, write nothing.")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@click.pass_context
def build(
    ctx: click.Context,
    /,
    target: str,
    drafter: str | None,
    positions_per_specialist: int | None,
    bundle: Path,
    tree_depth: int,
    top_k: int,
    tree_nodes: int,
    capacity: int | None,
    precision: Precision | Scheme,
    cache_form: CacheForm | None,
    backend: Backend,
    capacities: tuple[int, ...],
    timing_cache: Path | None,
    dry_run: bool,
    force: bool,
    **others: Any,
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
    quantise = _quantise_request(precision, form, others)
    options = {field.name: others[field.name] for field in fields(EngineOptions)}
    engines = None
    if backend != "onnxruntime":
        engines = request_engines(backend, EngineOptions(**options), capacities, timing_cache)
    elif timing_cache or capacities or EngineOptions(**options) != EngineOptions():
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
        _print_facts(plan.to_dict())
        return
    with _progress() as progress:
        manifest = build_bundle(
            plan, bundle, argv=ctx.meta["argv"], force=force, report=_log, progress=progress
        )
    figures = ", ".join(f"{name} {value:.1e}" for name, value in manifest.parity.items())
    click.echo(f"{bundle}: {_megabytes(sum(f.size for f in manifest.files.values()))}, parity {figures}")
    if manifest.quality is not None:
        _print_quality(manifest.quality)
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
    from poss_export.evaluation.gate import Thresholds
    from poss_export.evaluation.text_quality import HELD_OUT
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


def _print_quality(quality: Mapping[str, Any]) -> None:
    """Print what quantising costs, beside the pair in floating point."""
    text, rounds, widths = quality["text"], quality["rounds"], quality.get("widths")
    _print_facts(
        {
            "perplexity": f"{text['perplexity']:.3f}, in floating point {text['reference_perplexity']:.3f}",
            "divergence": f"{text['divergence']:.4f} nats a token",
            "agreement": f"{text['agreement']:.1%} of {text['tokens']} tokens",
            **(
                {
                    "tau": f"{rounds['tau']:.2f}, in floating point {rounds['reference_tau']:.2f}",
                    "equal answers": f"{rounds['equal_answers']} of {rounds['prompts']}",
                }
                if rounds
                else {}
            ),
            **(
                {
                    "width-independent": f"from {widths['least_width']} tokens a call on"
                    if widths["least_width"]
                    else "no",
                    "exact in trees": "yes"
                    if widths["tree_exact"]
                    else "no, only in chains (--top-k 1)"
                    if widths["least_width"]
                    else "no",
                }
                if widths
                else {}
            ),
        }
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON Lines of `prompt`, or of `turns` (the first is asked).",
)
@click.option("--max-new-tokens", default=128, help="Longest answer, in tokens.")
@click.option("--temperature", default=0.0, help="0: greedy.")
@click.option("--top-k", default=0, help="Sample from the likeliest tokens only; 0: all.")
@click.option("--top-p", default=1.0, help="Sample from the likeliest tokens that reach this share.")
@click.option(
    "--min-p", default=0.0, help="Sample from tokens at least this share as likely as the likeliest."
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", metavar="STRING", multiple=True, help="End the answer before this; repeatable.")
@click.option("--target-only", is_flag=True, help="Decode without the drafter, the baseline.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@_running
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a prompt.")
def generate(
    bundle: Path,
    prompt: tuple[str, ...],
    prompts: Path | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    target_only: bool,
    raw: bool,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Answer prompts with BUNDLE, by draft and verify."""
    from poss_export.prompts import read_prompts
    from poss_export.runtime.bundle import open_bundle
    from poss_export.runtime.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    asked = [*prompt, *(read_prompts(prompts) if prompts else ())]
    if not asked:
        raise InputError("no prompt; write one behind the bundle, or give a file with --prompts")
    answers = []
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        for text in asked:
            stream = engines.stream(
                text,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop,
                target_only=target_only,
                raw=raw,
            )
            answers.append(_show(stream, as_json))
    if len(answers) > 1:
        _log(f"{len(answers)} answers: {_summary(answers)}")


@main.command()
@click.argument("thing", metavar="BUNDLE|DRAFTER|TARGET|FILE.onnx")
@_positions_option
@click.option("--lint", is_flag=True, help="Take an ONNX file, and name what TensorRT would refuse in it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def inspect(
    ctx: click.Context, thing: str, positions_per_specialist: int | None, lint: bool, as_json: bool
) -> None:
    """Print what a bundle, a drafter or a target is.

    With --lint, exit with 1 if the graph breaks a rule.
    """
    if lint:
        ctx.exit(_lint(Path(thing), as_json))
    from poss_export.bundling.facts import facts_of, in_short

    facts = facts_of(thing, positions_per_specialist)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print_facts(in_short(facts))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", help="Where the bundle's target is; left out: its name in the manifest.")
@click.option("--drafter", help="Where the bundle's drafter is; left out: its name in the manifest.")
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    show_default="a few built in",
    help="JSON Lines of `prompt`, or of `turns` (the first is asked).",
)
@click.option("--num-prompts", type=click.IntRange(1), help="Compare so many answers; left out: all.")
@click.option("--max-new-tokens", default=64, help="Longest answer, in tokens.")
@click.option("--draws", type=click.IntRange(1), default=8000, help="Samples for the distribution test.")
@_running
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a check.")
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: Path,
    target: str | None,
    drafter: str | None,
    prompts: Path | None,
    num_prompts: int | None,
    max_new_tokens: int,
    draws: int,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Check that BUNDLE is whole, computes what PyTorch does, and loses nothing by speculating.

    Exits with 1 if a check fails. Checks of parity with PyTorch need the `export` extra and the
    checkpoints; without them they are skipped.
    """
    from poss_export.evaluation import checks
    from poss_export.manifest import read_manifest
    from poss_export.prompts import read_prompts
    from poss_export.runtime.bundle import open_bundle

    asked = (read_prompts(prompts) if prompts else checks.PROMPTS)[:num_prompts]
    manifest = read_manifest(bundle, full=True)
    made = [checks.Check("files", True, f"{len(manifest.files)} files are as they were built")]
    check_parity, skipped = _prepare_parity(manifest, target, drafter)
    made += skipped
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        made += check_parity(engines)
        made += checks.check_cache_laws(engines)
        made.append(checks.check_greedy(engines, asked, max_new_tokens, _log))
        made.append(checks.check_sampling(engines, asked, draws, _log))
    _print_checks(made, as_json)
    ctx.exit(int(any(check.passed is False for check in made)))


def _prepare_parity(
    manifest: "Manifest", target: str | None, drafter: str | None
) -> "tuple[Callable[[Bundle], list[Check]], list[Check]]":
    """Run PyTorch; return what compares a bundle with it, and the checks that cannot be made."""
    from poss_export.evaluation.checks import Check

    if manifest.quantisation:
        reason = "quantised graphs were compared when they were built; `inspect` tells what they lose"
        return lambda _: [], [Check("parity", None, reason)]
    try:
        from poss_export.exporters import parity
    except ImportError as error:
        return lambda _: [], [Check("parity", None, f"{error}; pip install 'poss-export[export]'")]
    _log("running PyTorch")
    reference, skipped = parity.find_reference(manifest, target, drafter)
    if reference is None:
        return lambda _: [], skipped
    return lambda engines: parity.check_parity(engines, reference), skipped


def _lint(path: Path, as_json: bool) -> int:
    from poss_export.exporters.linter import lint
    from poss_export.exporters.rules import VERSION

    violations = lint(path)
    if as_json:
        click.echo(json.dumps({"rules": VERSION, "violations": [asdict(v) for v in violations]}, indent=2))
    else:
        for violation in violations:
            click.echo(violation)
        click.echo(f"{path}: {len(violations)} violations of the rules of {VERSION}")
    return int(bool(violations))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--width",
    "widths",
    type=click.IntRange(1),
    multiple=True,
    show_default="1, 2, 4, ... 32 and the tree",
    help="Tokens of a target call; repeatable.",
)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(1),
    multiple=True,
    show_default="128 and 1024",
    help="Tokens in the cache before a call; repeatable.",
)
@click.option("--repeats", type=click.IntRange(1), default=20, help="Calls of each kind.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw latency by width.")
@_running
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, defined in docs/engines.md.")
def profile(
    bundle: Path,
    widths: tuple[int, ...],
    contexts: tuple[int, ...],
    repeats: int,
    plot: Path | None,
    backend: Backend,
    provider: "Provider",
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how long the calls of BUNDLE take: prefill, verification by width, drafting, whole rounds."""
    from poss_export.evaluation.latency import engine_facts, profile_bundle
    from poss_export.plots import check_plot, plot_profile
    from poss_export.runtime.bundle import open_bundle

    if plot is not None:
        check_plot(plot)
    with open_bundle(bundle, threads=threads, provider=provider, backend=backend) as engines:
        values = profile_bundle(
            engines, widths=widths or None, contexts=contexts or None, repeats=repeats, report=_log
        )
    values["engine"] = engine_facts(backend, provider, threads)
    if plot is not None:
        plot_profile(values, plot)
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    from rich.console import Console

    from poss_export.cli.tables import profile_table

    Console().print(profile_table(values))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1)
@click.option("-o", "--output", "record", metavar="RECORD", type=click.Path(path_type=Path), required=True)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    show_default="the target invents some",
    help="JSON Lines of `prompt`, or of `turns` (the first is asked).",
)
@click.option(
    "--num-prompts",
    type=click.IntRange(1),
    show_default="32 invented ones, or all given ones",
    help="Record so many answers.",
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, help="Longest answer, in tokens.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of invented prompts.")
@click.option("--threads", type=int, show_default="ONNX Runtime's choice", help="CPU threads.")
@click.option(
    "--acceptance",
    metavar="FILE.json",
    type=click.Path(path_type=Path),
    help="Write what the drafter's scores are worth, as docs/acceptance-calibration.md defines it.",
)
@click.option(
    "--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw it: reliability by depth."
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def calibrate(
    ctx: click.Context,
    bundle: Path,
    prompt: tuple[str, ...],
    record: Path,
    prompts: Path | None,
    num_prompts: int | None,
    max_new_tokens: int,
    seed: int,
    threads: int | None,
    acceptance: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Record in RECORD what draft/verify rounds of BUNDLE feed its graphs: samples for calibration.

    The bundle answers the prompts greedily on the CPU. Without prompts the target invents some.
    """
    from poss_export.calibration.acceptance import from_record, save_acceptance
    from poss_export.calibration.prompts import invent_prompts
    from poss_export.calibration.record import check_output, open_to_record, record_rounds, save_record
    from poss_export.plots import check_plot, plot_acceptance
    from poss_export.prompts import read_prompts

    outputs = [path for path in (record, acceptance, plot) if path is not None]
    for path in outputs:
        check_output(path, force, [other for other in outputs if other is not path])
    if plot is not None:
        check_plot(plot)
    asked = [*prompt, *(read_prompts(prompts) if prompts else ())][:num_prompts]
    if prompts is not None and not asked:
        raise InputError(f"{str(prompts)!r} is empty; write prompts into it, or leave it out to invent some")
    opened = open_to_record(bundle, threads, with_drafter=acceptance is not None or plot is not None)
    with opened as engines, _progress() as progress:
        asked = asked or invent_prompts(engines, num_prompts or 32, seed, progress)
        ids = [engines.encode(text, raw=engines.manifest.text.chat_template is None) for text in asked]
        made = record_rounds(engines, ids, max_new_tokens, argv=ctx.meta["argv"], progress=progress)
    fitted = from_record(made) if acceptance is not None or plot is not None else None
    save_record(made, record)
    if fitted is not None and acceptance is not None:
        save_acceptance(fitted, acceptance)
    if fitted is not None and plot is not None:
        plot_acceptance(fitted.to_dict(), plot)
    _print_record(record, made, fitted, as_json)


def _print_record(path: Path, record: "Record", acceptance: "AcceptanceCurves | None", as_json: bool) -> None:
    facts: dict[str, Any] = {
        "record": str(path),
        "sha256": record.sha256,
        "dialogues": len(record.dialogues),
        "rounds": len(record.rounds),
        "tokens": record.tokens,
        "tau": record.tau,
    }
    errors = None if acceptance is None else {name: asdict(getattr(acceptance, name)) for name in _FITS}
    if as_json:
        click.echo(json.dumps({**facts, "acceptance": errors}, indent=2))
        return
    click.echo(
        f"{path}: {facts['dialogues']} dialogues, {facts['rounds']} rounds, {facts['tokens']} tokens, "
        f"tau {record.tau:.2f}, sha256 {record.sha256}"
    )
    if errors is not None:
        ece, brier = ([errors[fit][figure] for fit in _FITS] for figure in ("ece", "brier"))
        click.echo(
            f"acceptance: expected calibration error {ece[0]:.4f}, fitted {ece[1]:.4f}; "
            f"Brier score {brier[0]:.4f}, fitted {brier[1]:.4f}"
        )


def _print_checks(checks: Sequence["Check"], as_json: bool) -> None:
    if as_json:
        for check in checks:
            click.echo(json.dumps(asdict(check), ensure_ascii=False))
        return
    from rich.console import Console

    from poss_export.cli.tables import checks_table

    Console().print(checks_table(checks))
    for note in (note for check in checks for note in check.notes):
        click.echo(note)


def _print_facts(facts: Mapping[str, Any]) -> None:
    from rich.console import Console

    from poss_export.cli.tables import facts_table

    Console().print(facts_table(facts))


def _show(stream: "Stream", as_json: bool) -> "Generation":
    """Print an answer, on a terminal while it grows."""
    if as_json:
        click.echo(json.dumps(stream.run().to_dict(), ensure_ascii=False))
    else:
        for piece in stream if sys.stdout.isatty() else [stream.run().text]:
            click.echo(piece, nl=False)
        click.echo()
    _log(f"{_summary([stream.result])}, finish: {stream.result.finish_reason}")
    return stream.result


def _summary(answers: Sequence["Generation"]) -> str:
    tokens, seconds = sum(a.tokens for a in answers), sum(a.seconds for a in answers)
    rounds = sum(a.rounds for a in answers)
    tau = (tokens - len(answers)) / rounds if rounds else 0.0
    return f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s, tau {tau:.2f}"


def _print_engine(entry: EngineEntry, size: int) -> None:
    kinds = Counter(entry.attention.values())
    attention = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "written out in the graph"
    click.echo(
        f"{entry.spec.file}: {_megabytes(size)} in {entry.build_seconds:.1f} s, "
        f"peak memory {_megabytes(entry.peak_memory)}, attention: {attention}"
    )


def _warn_of_other_target(plan: "Plan") -> None:
    if plan.drafter is not None and plan.drafter.target_sha256 not in (None, plan.target.sha256):
        _log(
            f"warning: drafter {plan.drafter.name!r} was trained for other weights than those of "
            f"{plan.target.name!r}; output stays right, but fewer tokens may be accepted"
        )


def _log(line: str) -> None:
    click.echo(line, err=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _choice(name: str, kind: Any, text: str, default: str = "the preset's") -> Callable[..., Any]:
    """Return an option whose value, left out, is decided elsewhere."""
    return click.option(f"--{name}", type=kind, show_default=default, help=text)


@main.command()
@click.argument("target")
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Kind of drafter.")
@_choice("fusion", click.Choice(get_args(Fusion)), "How embedding and feature become one vector.")
@_choice("alignment", click.Choice(get_args(Alignment)), "Whether LM head and feedback share one vector.")
@_choice("drafting", click.Choice(get_args(Drafting)), "Level by level, or all positions in one pass.")
@_choice("num-specialists", int, "Layers that share the draft positions.")
@_choice("positions-per-specialist", int, "Draft positions of each specialist.")
@_choice("num-layers", int, "Layers that a row passes (parallel drafting).")
@_choice("num-masks", int, "Mask rows: draft positions after the first (parallel drafting).")
@_choice("shared-mask", bool, "Whether all mask rows have one embedding (parallel drafting).")
@_choice("mask-feature", click.Choice(get_args(MaskFeature)), "What mask rows read as their feature.")
@click.option("-o", "--output", "drafter", metavar="DRAFTER", type=click.Path(path_type=Path), required=True)
@click.option(
    "--dialogues",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Train on dialogues that the target wrote earlier (.npz); repeatable.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON Lines of user turns to answer, in place of invented ones.",
)
@click.option(
    "--start",
    metavar="DRAFTER",
    help="Trained drafter to start from, in place of the first stage; what it lacks starts without effect.",
)
@click.option(
    "--recipe",
    type=click.Choice(get_args(Recipe)),
    default="small",
    help="Stages, losses and rates: what works best for small targets, or as published.",
)
@_choice("token-weight", float, "Of the loss on the target's distribution.", "the recipe's")
@_choice("top-weight", float, "Of that loss on the ten likeliest tokens only.", "the recipe's")
@_choice("feature-weight", float, "Of the loss on the feature that is fed back.", "the recipe's")
@_choice("learning-rate", float, "At the height of each stage.", "the recipe's")
@_choice("steps", int, "Positions that each row is unrolled for, in every stage.", "the recipe's")
@_choice("step-decay", float, "What a step counts against the one before it.", "the recipe's")
@click.option("--invent", default=3000, help="User turns that the target invents.")
@click.option("--budget", default=20_000_000, help="Scored rows times unrolled steps to train on.")
@click.option(
    "--draft-vocab",
    type=int,
    show_default="8192, or that of --start",
    help="Tokens that the drafter can propose.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Keep the target's features of the dialogues here, for other runs on them.",
)
@click.option("--seed", default=0, help="Repeats a run on the same machine.")
@click.option("--threads", type=int, show_default="PyTorch's choice", help="CPU threads.")
def train(
    target: str,
    preset: str,
    drafter: Path,
    dialogues: tuple[Path, ...],
    prompts: Path | None,
    start: str | None,
    recipe: Recipe,
    invent: int,
    budget: int,
    draft_vocab: int | None,
    cache: Path | None,
    seed: int,
    threads: int | None,
    **given: Any,
) -> None:
    """Train a drafter for TARGET on answers that TARGET writes itself; DRAFTER is a new folder.

    A run that was killed goes on where it stood when the same command is given again.
    """
    import torch

    from poss_export.prompts import read_prompts
    from poss_export.targets.checkpoint import open_target
    from poss_export.training import run

    given = {name: value for name, value in given.items() if value is not None}
    losses = {name: given.pop(name) for name in STAGE_FIELDS if name in given}
    options = run.TrainOptions(
        preset=preset,
        choices=given,
        recipe=recipe,
        losses=losses,
        dialogues=dialogues,
        prompts=() if prompts is None else tuple(read_prompts(prompts)),
        start=start,
        invent=invent,
        budget=budget,
        draft_vocab_size=draft_vocab,
        seed=seed,
    )
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        torch.set_num_threads(threads)
    with _progress() as report:
        record = run.train(open_target(target), options, drafter, report, cache)
    held_out = record["held_out"]
    taus = ", ".join(f"{nodes} nodes {tau}" for nodes, tau in held_out["tree_tau"].items())
    click.echo(f"{drafter}: acceptance by depth {held_out['alpha']}")
    click.echo(f"tokens a round: chains {held_out['chain_tau']}, trees of {taus}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """Yield a report that draws one bar an activity on a terminal, and a line a minute elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
    tasks: dict[str, TaskID] = {}
    last = 0.0

    def report(activity: str, done: int, total: int, note: str) -> None:
        nonlocal last
        if console.is_terminal:
            if activity not in tasks:
                tasks[activity] = bars.add_task(activity, total=total, note=note)
            bars.update(tasks[activity], completed=done, total=total, note=note)
        elif time.monotonic() - last > 60 or done >= total:
            last = time.monotonic()
            _log(f"{activity} {done}/{total} {note}")

    if not console.is_terminal:
        yield report
        return
    with bars:
        yield report
