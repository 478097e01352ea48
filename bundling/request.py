"""What a build is asked for, in plain values, and what follows where a caller leaves something out.

Importing it is cheap, so that a command line can read its defaults.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast, get_args

from poss_export.config import CacheForm, DraftPrecision, Observer, Precision, Scheme, Thresholds, TreeShape
from poss_export.engine_spec import BACKENDS, Backend, EngineOptions, GraphName
from poss_export.errors import InputError
from poss_export.prompts import read_prompts

if TYPE_CHECKING:
    from poss_export.bundling.engine_request import EngineRequest
    from poss_export.bundling.plan import Plan
    from poss_export.bundling.quantise_request import QuantiseRequest
    from poss_export.quantisation.decisions import GraphRequest


# Which option of `QuantisationOptions` is of the layers of which graph.
_LAYERS: dict[GraphName, str] = {"target": "layers", "draft": "draft_layers"}


@dataclass(frozen=True)
class QuantisationOptions:
    """How graphs are quantised, and what the result must reach (docs/quantisation.md).

    `layers` are precisions of single layers of the target, as "head=int8": head, or a weight's name with
    wildcards, and a scheme or float; the last that fits counts. `draft_layers` are the drafter's, which has
    "fusion" too. `samples` is a file that `poss-export calibrate` wrote. None takes text and prompts that are
    built in.
    """

    layers: tuple[str, ...] = ()
    draft_layers: tuple[str, ...] = ()
    samples: Path | None = None
    observer: Observer = "min-max"
    smoothing: bool = True
    budget: float = 0.01  # nats a token that rounded activations may cost
    held_out: Path | None = None  # plain text that quality is measured on
    held_out_prompts: Path | None = None  # JSON Lines that tau is measured on
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for; what is None is decided by `plan`.

    `target` and `drafter` are names or places, `positions_per_specialist` is of a drafter that does not state
    it. `draft_vocab_size` cuts a drafter that can propose every token to the most frequent ones, by samples
    or else by the tokenizer's order. `acceptance`: learn from rounds on prompts how the drafter's scores are
    to be read, which takes the target in float32 as a whole; without it every round verifies the whole tree.
    A `draft_precision` of None lets a bundle for ONNX Runtime on the CPU
    have the faster of "w8a8" and "float". `engine_capacities` are of further engines, below the bundle's;
    `engine_widths` are the rows of the calls that the target's are made for, none for 2, 4, 8, 16 up to the
    tree's; `engine_slots` is a power of two: they are made for calls of up to so many answers.
    `timing_cache` is TensorRT's.
    """

    target: str
    drafter: str | None = None
    positions_per_specialist: int | None = None
    draft_vocab_size: int | None = None
    acceptance: bool = True
    tree: TreeShape = field(default_factory=TreeShape)
    capacity: int | None = None  # tokens of prompt and answer together
    precision: Precision | Scheme = "fp32"
    draft_precision: DraftPrecision | None = None
    cache_form: CacheForm | None = None
    backend: Backend = "onnxruntime"
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    engines: EngineOptions = field(default_factory=EngineOptions)
    engine_capacities: tuple[int, ...] = ()
    engine_widths: tuple[int, ...] = ()
    engine_slots: int = 1
    timing_cache: Path | None = None

    @property
    def form(self) -> CacheForm:
        """The form of the caches: what suits the backend, unless it is asked for."""
        return self.cache_form or ("shared" if self.backend == "onnxruntime" else "static")

    @property
    def float_type(self) -> Precision:
        """What a graph computes in where it is not quantised."""
        if not _is_scheme(self.precision):
            return cast(Precision, self.precision)
        return "fp32" if self.form == "shared" else "fp16"

    @property
    def asked_schemes(self) -> dict[GraphName, Scheme]:
        """How each graph is quantised for which that is asked."""
        asked: dict[GraphName, str | None] = {"target": self.precision, "draft": self.draft_precision}
        return {graph: scheme for graph, scheme in asked.items() if _is_scheme(scheme)}

    @property
    def contest(self) -> bool:
        """Whether the drafter's precision is left to a build that ONNX Runtime on the CPU can measure."""
        left_out = self.drafter is not None and self.draft_precision is None
        return left_out and self.acceptance and self.form == "shared" and self.float_type == "fp32"

    @property
    def schemes(self) -> dict[GraphName, Scheme]:
        """How each graph is quantised that is, or may be."""
        return {**self.asked_schemes, **({"draft": "w8a8"} if self.contest else {})}


def plan(request: BuildRequest) -> "Plan":
    """Open the checkpoints and return what a build will do; nothing is written.

    Raises:
        InputError: options do not suit each other, the target or the drafter, or a file cannot be read.
        CheckpointError: a checkpoint cannot be used, or target and drafter do not belong together.
        BackendError: the library that builds engines is not installed, or its GPU is not there.
    """
    _check_values(request)
    if request.drafter is None and request.positions_per_specialist is not None:
        raise InputError(
            "positions per specialist are a drafter's; name the drafter, or leave them out",
            options=("drafter", "positions_per_specialist"),
        )
    if request.drafter is None and request.draft_vocab_size is not None:
        raise InputError(
            "a draft vocabulary needs a drafter: name one, or leave it out",
            options=("drafter", "draft_vocab_size"),
        )
    if request.drafter is None and not request.acceptance:
        raise InputError(
            "acceptance is a drafter's, and there is none: name one, or do not leave it out",
            options=("drafter", "acceptance"),
        )
    if request.drafter is None and request.draft_precision is not None:
        raise InputError(
            "a draft precision needs a drafter: name one, or leave it out",
            options=("drafter", "draft_precision"),
        )
    from poss_export.bundling.plan import plan_build
    from poss_export.drafters.checkpoint import load_drafter, refuse_drafter
    from poss_export.targets.checkpoint import open_target

    quantise, engines = _quantise_request(request), _engine_request(request)
    drafter = None
    refuse_drafter(request.target)
    target = open_target(request.target)
    if request.drafter is not None:
        drafter = load_drafter(request.drafter, request.positions_per_specialist)
    return plan_build(
        target,
        drafter,
        tree=request.tree,
        capacity=request.capacity,
        precision=request.float_type,
        cache_form=request.form,
        engines=engines,
        quantise=quantise,
        draft_vocab_size=request.draft_vocab_size,
    )


def _check_values(request: BuildRequest) -> None:
    """Raise InputError where a value is none of those that there are."""
    options = request.quantisation
    values: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "precision": (request.precision, (*get_args(Precision), *get_args(Scheme))),
        "draft_precision": (request.draft_precision, get_args(DraftPrecision)),
        "cache_form": (request.cache_form, get_args(CacheForm)),
        "backend": (request.backend, BACKENDS),
        "observer": (options.observer, get_args(Observer)),
    }
    for name, (value, known) in values.items():
        if value is not None and value not in known:
            raise InputError(
                f"{name.replace('_', ' ')} is {value!r}; expected one of {', '.join(known)}", options=(name,)
            )
    if not options.budget >= 0:
        raise InputError(f"budget is {options.budget} nats; it must be 0 or more", options=("budget",))


def _engine_request(request: BuildRequest) -> "EngineRequest | None":
    """Return which engines are asked for, or None."""
    if request.backend == "onnxruntime":
        sizes = (*request.engine_capacities, *request.engine_widths) or request.engine_slots != 1
        if request.timing_cache or sizes or request.engines != EngineOptions():
            raise InputError(
                "options of engines need a backend that builds some: tensorrt-rtx or tensorrt",
                options=("backend",),
            )
        return None
    from poss_export.bundling.engine_request import request_engines

    return request_engines(
        request.backend,
        request.engines,
        request.engine_capacities,
        request.timing_cache,
        request.engine_widths,
        request.engine_slots,
    )


def _quantise_request(request: BuildRequest) -> "QuantiseRequest | None":
    """Return what is asked of quantised graphs, and read the files that it takes; None where nothing is."""
    _check_options(request)
    options = request.quantisation
    learns = request.drafter is not None and request.acceptance
    if not request.acceptance and (request.schemes or options.samples is not None):
        raise InputError(
            "acceptance can be left out where no graph is quantised and no samples are given, as only then "
            "no rounds are run: leave precisions and samples out, too",
            options=("acceptance", "precision", "draft_precision", "samples"),
        )
    if not request.schemes and options.samples is None and not learns:
        return None
    from poss_export.bundling.quantise_request import QuantiseRequest
    from poss_export.calibration.record import load_record
    from poss_export.evaluation.held_out import HELD_OUT, PROMPTS

    file = options.held_out_prompts
    prompts = PROMPTS if file is None else tuple(read_prompts(file))  # first: it is the faster to refuse
    return QuantiseRequest(
        graphs={graph: _graph_request(request, graph) for graph in request.schemes},
        samples=None if options.samples is None else load_record(options.samples),
        thresholds=options.thresholds,
        text=options.held_out or HELD_OUT,
        prompts=prompts,
        contest=request.contest,
    )


def _check_options(request: BuildRequest) -> None:
    """Raise InputError where an option says something of graphs that are not quantised."""
    options = request.quantisation
    for graph, layers in _LAYERS.items():
        if getattr(options, layers) and graph not in request.asked_schemes:
            raise InputError(
                f"precisions of layers are of a quantised {graph}: name its precision too",
                options=("precision" if graph == "target" else "draft_precision",),
            )
    if request.asked_schemes:
        return
    for name in (option.name for option in fields(options) if option.name != "samples"):
        if getattr(options, name) != getattr(QuantisationOptions(), name):
            raise InputError(
                f"{name.replace('_', ' ')} is of quantised graphs: name a precision such as w8a8, or "
                "leave it out",
                options=("precision", name),
            )


def _graph_request(request: BuildRequest, graph: GraphName) -> "GraphRequest":
    from poss_export.quantisation.decisions import GraphRequest

    options, scheme = request.quantisation, request.schemes[graph]
    on_cpu = (
        request.form == "shared"
    )  # ONNX Runtime alone has kernels for activations in digits, or in floats
    layers = tuple(_layer(text, _LAYERS[graph]) for text in getattr(options, _LAYERS[graph]))
    return GraphRequest(
        scheme,
        layers=(("head", "int8" if on_cpu else None), *layers)
        if scheme == "int4"
        else layers,  # few bear a 4-bit head
        observer=options.observer,
        smoothing=options.smoothing,
        budget=options.budget,
        fallback="w8a16" if on_cpu and scheme == "w8a8" else None,
    )


def _layer(text: str, option: str) -> tuple[str, Scheme | None]:
    """Read "head=int8", which `option` holds."""
    pattern, _, precision = text.rpartition("=")
    if pattern and precision == "float":
        return pattern, None
    if not pattern or not _is_scheme(precision):
        raise InputError(
            f"layer precision {text!r}: expected LAYER=PRECISION, such as head=int8, with one of "
            f"{', '.join(get_args(Scheme))} or float",
            options=(option,),
        )
    return pattern, precision


def _is_scheme(precision: str | None) -> TypeGuard[Scheme]:
    return precision in get_args(Scheme)
