"""Build one engine in a process of its own: a job comes on stdin, lines of JSON go to stdout.

A process of its own because Polygraphy serves one flavour of TensorRT per process, because the peak of
memory is then the builder's, and because a builder that crashes or is interrupted must take nothing along.
No PyTorch here.

    {"phase": "...", "done": 3, "total": 10}     while it builds
    {"result": {...}}                            in the end, or
    {"error": "...", "errno": 28}                errno where a file could not be written
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poss_export.engine_spec import EngineSpec
from poss_export.machine import peak_memory

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What to build; `profiles` maps each input to its smallest, most common and largest shape."""

    graph: str  # path of the .onnx file
    engine: str  # path to write
    spec: EngineSpec
    profiles: list[dict[str, list[list[int]]]]
    decomposable: bool  # attention may become several layers: there is no fused one for its type
    timing_cache: str | None = None  # path, read and written

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read a job."""
        values = json.loads(text)
        return cls(**{**values, "spec": EngineSpec.from_dict(values["spec"])})


@dataclass(frozen=True)
class Built:
    """What a build found in the parsed network, and what it took; fields as in `EngineEntry`."""

    aliases: dict[str, str]
    attention: dict[str, str]
    build_seconds: float
    peak_memory: int


def build(job: Job, tell: Tell) -> Built:
    """Parse the graph, build the engine, write it; call `tell` with the progress.

    Raises:
        RuntimeError: the parser or the builder refuses; the message is its own.
        OSError: the engine cannot be written.
    """
    from polygraphy import config as polygraphy

    polygraphy.USE_TENSORRT_RTX = job.spec.flavour == "tensorrt-rtx"  # read when the loaders are imported
    from polygraphy.backend.trt import NetworkFromOnnxPath, SetDecomposableAttentions, util
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.CRITICAL
    errors: list[str] = []  # the first is the reason, the rest are its consequences
    serious = (util.trt.ILogger.ERROR, util.trt.ILogger.INTERNAL_ERROR)
    util.TRT_LOGGER = listener(
        util.trt, lambda severity, text: errors.append(text) if severity in serious else None
    )
    try:
        start = time.perf_counter()
        parsed = NetworkFromOnnxPath(job.graph, strongly_typed=True)
        if job.decomposable:
            parsed = SetDecomposableAttentions(parsed)
        builder, network, parser = parsed()
        network.name = job.spec.to_name()
        description = _describe(util.trt, network)
        _serialise(util.trt, builder, network, _configure(util.trt, builder, network, job, tell), job)
        del parser  # it keeps the weights that the network points to
    except PolygraphyException as error:
        raise RuntimeError(errors[0] if errors else str(error)) from error
    if not Path(job.engine).exists() or Path(job.engine).stat().st_size == 0:
        raise RuntimeError(errors[0] if errors else "the builder gave no reason")
    return Built(
        **description, build_seconds=round(time.perf_counter() - start, 2), peak_memory=peak_memory() or 0
    )


def _configure(trt: Any, builder: Any, network: Any, job: Job, tell: Tell) -> Any:
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, Profile

    profiles = []
    for shapes in job.profiles:
        profile = Profile()
        for name, (least, common, most) in shapes.items():
            profile.add(name, least, common, most)
        profiles.append(profile)
    options = job.spec.options
    common_options: dict[str, Any] = {
        "profiles": profiles,
        "progress_monitor": _progress_monitor(trt, tell),
        "strip_plan": options.strip_weights,
        "weight_streaming": options.weight_streaming,
    }
    if job.spec.flavour == "tensorrt-rtx":
        capabilities = [tuple(map(int, name.split("."))) for name in options.compute_capabilities]
        create = CreateConfigRTX(compute_capabilities=capabilities, **common_options)
    else:
        ampere = trt.HardwareCompatibilityLevel.AMPERE_PLUS if options.hardware_compatible else None
        create = CreateConfig(
            builder_optimization_level=options.optimization_level,
            version_compatible=options.version_compatible,
            hardware_compatibility_level=ampere,
            load_timing_cache=job.timing_cache,
            **common_options,
        )
    config = create(builder, network)
    config.clear_flag(trt.BuilderFlag.TF32)  # it is no float32: rows would differ by their kernels
    if options.strip_weights:
        # Plain REFIT may drop a bias even where nothing is refitted; we only ever put the same weights back.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    return config


def _serialise(trt: Any, builder: Any, network: Any, config: Any, job: Job) -> None:
    """Build, and write the engine to its file."""
    if job.spec.flavour == "tensorrt":  # the loader also keeps the timing cache, under a lock
        from polygraphy.backend.trt import EngineBytesFromNetwork

        loader = EngineBytesFromNetwork((builder, network), config, save_timing_cache=job.timing_cache)
        Path(job.engine).write_bytes(loader())
        return

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """Writes pieces as they come: the engine is never whole in memory."""

        def __init__(self, file: Any) -> None:
            trt.IStreamWriter.__init__(self)
            self.file = file
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return int(self.file.write(data))
            except OSError as error:  # cannot pass through the builder
                self.error = error
                return 0

    with Path(job.engine).open("wb", buffering=0) as file:
        writer = Writer(file)
        builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:
        raise writer.error


def _describe(trt: Any, network: Any) -> dict[str, dict[str, str]]:
    """Return what the parsed network says of its caches and its attention."""
    aliases, attention = {}, {}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type == trt.LayerType.KV_CACHE_UPDATE:
            aliases[layer.get_input(0).name] = layer.get_output(0).name
        elif layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            # Without leave to decompose, the build fails where there is no fused kernel.
            attention[layer.name] = "decomposed" if layer.attention.decomposable else "fused"
    return {"aliases": aliases, "attention": attention}


def listener(trt: Any, hear: Callable[[Any, str], None]) -> Any:
    """Return a logger of TensorRT that tells `hear` the severity and the text of every message."""

    def log(_: Any, severity: Any, message: str) -> None:
        hear(severity, message)

    return type("Listener", (trt.ILogger,), {"log": log})()


def _progress_monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells how far the outermost phase is, and which phase within it began."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.whole, self.done, self.total = "", 0, 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.whole, self.done, self.total = phase_name, 0, num_steps
            if parent_phase in (None, self.whole):
                tell({"phase": phase_name, "done": self.done, "total": self.total})

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.whole:
                self.done = step + 1
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.whole:
                tell({"phase": phase_name, "done": self.total, "total": self.total})

    return Monitor()


def main() -> None:
    """Run the job on stdin."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")

    try:
        tell({"result": asdict(build(Job.from_json(sys.stdin.read()), tell))})
    except OSError as error:
        tell({"error": error.strerror or str(error), "errno": error.errno})
    except RuntimeError as error:
        tell({"error": str(error), "errno": None})


if __name__ == "__main__":
    main()
