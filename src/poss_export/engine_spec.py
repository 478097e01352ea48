"""What an engine is: compiled from which graph, by what, for which devices and sizes of a call.

The exporters write it, the manifest keeps it, the runtime checks it before it loads an engine.
"""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from poss_export.config import Precision
from poss_export.errors import InputError

Flavour = Literal["tensorrt-rtx", "tensorrt"]
Backend = Literal["onnxruntime"] | Flavour
GraphName = Literal["target", "draft"]

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
BACKENDS: tuple[Backend, ...] = ("onnxruntime", *FLAVOURS)
MODULES: dict[Flavour, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
NAMES: dict[Flavour, str] = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # of TensorRT-RTX 1.7

# Rows of the calls that a target's engine is made for: rounds of any width are filled up to the next. Not 1:
# TensorRT-RTX stores nearly all weights a second time for it (docs/engines.md).
LADDER = (2, 4, 8, 16)

MOST_SLOTS = 64  # sequences whose rows caches hold at a time

MOST_PROFILES = 40  # of an engine, whose name has room for 4096 bytes and tells them all

_MARK = "poss-export engine "  # before the specification that every engine carries as its name

Sizes = tuple[int, int, int]  # smallest, most common, largest


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built, in the builder's words; a default leaves the choice to the builder.

    `compute_capabilities` are those of the devices it is for, as "8.9"; TensorRT-RTX takes several,
    TensorRT builds for the device of the machine.
    """

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None  # 0 to 5; the builder's own is 3
    version_compatible: bool = False  # later versions of TensorRT load it
    hardware_compatible: bool = False  # devices of compute capability 8.0 and above load it
    strip_weights: bool = False  # the weights are put in when it is loaded, from the graph
    weight_streaming: bool = False  # weights may stay on the host

    def check(self, flavour: Flavour) -> None:
        """Raise InputError where `flavour` does not have an option that is set."""
        if flavour == "tensorrt":
            self._refuse("tensorrt", compute_capabilities="it builds for the GPU of this machine")
            if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
                raise InputError(
                    f"optimization level is {self.optimization_level}; TensorRT has the levels 0 to 5"
                )
            return
        self._refuse(
            "tensorrt-rtx",
            optimization_level="its engines are optimised on the device, when they are loaded",
            version_compatible="its engines belong to one version",
            hardware_compatible="name the compute capability of every device instead",
        )
        known = ", ".join(RTX_COMPUTE_CAPABILITIES)
        if not self.compute_capabilities:
            raise InputError(f"no compute capability; name one of {known}", options=("compute_capabilities",))
        for capability in self.compute_capabilities:
            if capability not in RTX_COMPUTE_CAPABILITIES:
                raise InputError(
                    f"compute capability {capability!r} is unknown to TensorRT-RTX: use one of {known}"
                )

    def _refuse(self, flavour: Flavour, **reasons: str) -> None:
        for field in fields(self):
            if field.name in reasons and getattr(self, field.name) != field.default:
                option = field.name.replace("_", " ").replace("capabilities", "capability")
                message = f"{NAMES[flavour]} has no option {option}: {reasons[field.name]}"
                raise InputError(message, options=(field.name,))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EngineOptions":
        """Read plain JSON values."""
        return cls(**{**values, "compute_capabilities": tuple(values["compute_capabilities"])})


@dataclass(frozen=True)
class Profile:
    """Sizes of the open dimensions of a call, by name; a fixed profile has one size for each.

    One that does not name the batch is for one sequence.
    """

    sizes: Mapping[str, Sizes]

    def of(self, name: str) -> Sizes:
        """Return the sizes of a dimension."""
        return self.sizes.get(name, (1, 1, 1))

    def fits(self, **wanted: int) -> bool:
        """Whether a call of these sizes can run under this profile."""
        return all(self.of(name)[0] <= size <= self.of(name)[2] for name, size in wanted.items())

    def at(self, which: int) -> dict[str, int]:
        """Return the sizes of a call by name: the smallest (0), the most common (1) or the largest (2)."""
        return {name: self.of(name)[which] for name in ("batch", *self.sizes)}

    @property
    def fixed(self) -> bool:
        """Whether every dimension has one size."""
        return all(least == most for least, _, most in self.sizes.values())

    @property
    def rows(self) -> int:
        """The largest rows of a call; a fixed profile has no others."""
        return self.of("rows")[2]

    @property
    def sequences(self) -> int:
        """How many sequences a call has."""
        return self.of("batch")[2]


def ladder_of(tree_width: int | None, asked: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the widths that the target's engine is made for, ascending.

    Those that are `asked` for, or else the usual ones; and `tree_width`, that of the drafter's whole tree,
    which the usual ones do not go beyond. It is None without a drafter.
    """
    if tree_width is None:
        return tuple(asked or LADDER)
    usual = (width for width in LADDER if width < tree_width)
    return tuple(sorted({*(asked or usual), tree_width}))


def target_profiles(chunk: int, widths: Sequence[int] = (), slots: int = 1) -> tuple[Profile, ...]:
    """Return the target's: any call of up to `chunk` tokens, and trees of exactly these `widths`.

    The first is for one sequence, the others for one, and for 2, 4, ... `slots`.
    """
    prefill = Profile({"seq": (1, chunk, chunk), "rows": (1, 1, chunk)})
    return (
        prefill,
        *(_fixed(batch, seq=width, rows=width) for batch in _batches(slots) for width in widths),
    )


def draft_profiles(chunk: int, width: int, slots: int = 1) -> tuple[Profile, ...]:
    """Return the drafter's: any call of up to `chunk` new rows, and the `width` rows of a padded round.

    The first is for one sequence, the others for one, and for 2, 4, ... `slots`.
    """
    return Profile({"rows": (1, chunk, chunk)}), *(_fixed(batch, rows=width) for batch in _batches(slots))


def _batches(slots: int) -> list[int]:
    return [1 << bit for bit in range(slots.bit_length())]


def _fixed(batch: int, **sizes: int) -> Profile:
    named = sizes if batch == 1 else {"batch": batch, **sizes}
    return Profile({name: (size, size, size) for name, size in named.items()})


@dataclass(frozen=True)
class EngineSpec:
    """Everything that decides what an engine computes: equal specs need no second build."""

    graph: GraphName
    flavour: Flavour
    version: str  # of the library that built it
    precision: Precision
    capacity: int  # tokens that a cache can hold
    profiles: tuple[Profile, ...]
    options: EngineOptions
    graph_sha256: str  # of the bundle's graph and its weights, whose capacity may be larger

    @property
    def file(self) -> str:
        """The engine's file in the bundle."""
        devices = (f"sm{name.replace('.', '')}" for name in self.options.compute_capabilities)
        return "-".join((self.graph, self.flavour, *devices, str(self.capacity))) + ".engine"

    @property
    def slots(self) -> int:
        """The most sequences of a call."""
        return max(profile.sequences for profile in self.profiles)

    def to_name(self) -> str:
        """Return the name that the engine carries: this specification, for `embedded_spec`."""
        return _MARK + json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EngineSpec":
        """Read plain JSON values."""
        profiles = tuple(
            Profile({name: (sizes[0], sizes[1], sizes[2]) for name, sizes in profile["sizes"].items()})
            for profile in values["profiles"]
        )
        options = EngineOptions.from_dict(values["options"])
        return cls(**{**values, "profiles": profiles, "options": options})


@dataclass(frozen=True)
class EngineEntry:
    """An engine of a bundle: what it is, and what its build found and took."""

    spec: EngineSpec
    aliases: Mapping[str, str]  # cache input: the output that is the same memory
    attention: Mapping[str, str]  # attention layer: "fused" or "decomposed"
    build_seconds: float
    peak_memory: int  # bytes, of the building process

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EngineEntry":
        """Read what `to_dict` wrote, after a round trip through JSON."""
        return cls(**{**values, "spec": EngineSpec.from_dict(values["spec"])})


def embedded_spec(path: Path) -> EngineSpec | None:
    """Return what the engine file at `path` says it is, or None; no device is needed."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_MARK.encode())
            text = content[start + len(_MARK) : start + 4096] if start >= 0 else b""
    try:
        values, _ = json.JSONDecoder().raw_decode(text.decode("ascii", errors="replace"))
        return EngineSpec.from_dict(values)
    except (ValueError, KeyError, TypeError):
        return None


def differences(one: EngineSpec, other: EngineSpec) -> Iterator[tuple[str, object, object]]:
    """Yield every field that differs, as ("options.strip_weights", True, False)."""
    for prefix, ours, theirs in (("", one, other), ("options.", one.options, other.options)):
        for field in fields(ours):
            if field.name != "options" and getattr(ours, field.name) != getattr(theirs, field.name):
                yield prefix + field.name, getattr(ours, field.name), getattr(theirs, field.name)
