"""Which engines a build is asked for, beside the graphs, and whether this machine can make them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from poss_export.config import CacheForm
from poss_export.engine_spec import MODULES, MOST_SLOTS, NAMES, EngineOptions, Flavour
from poss_export.errors import BackendError, InputError
from poss_export.reference import ROWS
from poss_export.runtime.sessions.base import PREFILL_CHUNK
from poss_export.runtime.sessions.cuda import device_capability, has_driver


@dataclass(frozen=True)
class EngineRequest:
    """What a build is asked for beside graphs; `request_engines` makes it."""

    flavour: Flavour
    version: str
    options: EngineOptions
    capacities: tuple[int, ...] = ()  # of further engines, below the bundle's
    widths: tuple[int, ...] = ()  # of calls that the target's are made for; empty: the usual ladder
    slots: int = 1  # the most sequences of a call
    timing_cache: Path | None = None


def library_version(flavour: Flavour) -> str:
    """Return the version of the installed library; nothing is imported.

    Raises:
        BackendError: it is not installed, or Polygraphy is not.
    """
    try:
        version("polygraphy")
        return version(MODULES[flavour]).partition(".post")[0]  # as the module says it
    except PackageNotFoundError as error:
        raise BackendError(
            f"{NAMES[flavour]} needs {error.name}, which is not installed: "
            f"pip install 'poss-export[{flavour}]'"
        ) from error


def request_engines(
    flavour: Flavour,
    options: EngineOptions,
    capacities: Sequence[int] = (),
    timing_cache: Path | None = None,
    widths: Sequence[int] = (),
    slots: int = 1,
) -> EngineRequest:
    """Return the request with the version filled in, and the device where it is the machine's.

    Capacities and widths may come in any order, and more than once. Engines are made for calls of up to
    `slots` sequences.

    Raises:
        InputError: the flavour does not have one of the options, or `slots` is no power of two.
        BackendError: the library is not installed, or the GPU that it needs is not there.
    """
    options.check(flavour)
    if timing_cache is not None and flavour != "tensorrt":
        raise InputError(f"{NAMES[flavour]} has no timing cache: it times no kernels when it builds")
    if not 1 <= slots <= MOST_SLOTS or slots & (slots - 1):
        raise InputError(
            f"engine slots is {slots}; it must be a power of two, 1 to {MOST_SLOTS}",
            options=("engine_slots",),
        )
    if capacities and options.strip_weights:
        raise InputError(
            "engines of several capacities cannot be built without weights: their tables differ from the "
            "graph's; build them with their weights, or in one capacity",
            options=("strip_weights", "engine_capacities"),
        )
    request = EngineRequest(
        flavour,
        library_version(flavour),
        options,
        capacities=tuple(sorted(set(capacities))),
        widths=tuple(sorted(set(widths))),
        slots=slots,
        timing_cache=timing_cache,
    )
    if flavour == "tensorrt":
        return replace(request, options=replace(options, compute_capabilities=(device_capability(),)))
    if options.strip_weights and not has_driver():
        raise BackendError(
            "TensorRT-RTX needs a GPU driver to build engines without weights, and there is none: "
            "build on a machine with a GPU, or with the weights",
            options=("strip_weights",),
        )
    return request


def check_engines(request: EngineRequest, capacity: int, cache_form: CacheForm) -> None:
    """Raise InputError where engines cannot be built of such graphs."""
    if cache_form != "static":
        raise InputError(
            f"cache form {cache_form!r} is not for TensorRT: use 'static', or leave it out",
            options=("cache_form",),
        )
    for smaller in request.capacities:
        if not ROWS <= smaller < capacity:
            raise InputError(
                f"engine capacity is {smaller} tokens; beside a bundle of {capacity} it may be {ROWS} to "
                f"{capacity - 1}",
                options=("engine_capacities",),
            )
    chunk = min(PREFILL_CHUNK, capacity, *request.capacities)
    for width in request.widths:
        if not 1 <= width <= chunk:
            raise InputError(
                f"engine width is {width} rows; it may be 1 to {chunk}, the longest chunk of a prompt",
                options=("engine_widths",),
            )
