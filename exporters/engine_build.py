"""From a graph to an engine: its check, and its build in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from poss_export.contract import GraphContract, TensorSpec
from poss_export.engine_spec import (
    NAMES,
    EngineEntry,
    EngineSpec,
    Profile,
)
from poss_export.errors import BackendError
from poss_export.exporters.engine_worker import Built, Job
from poss_export.exporters.linter import require_clean
from poss_export.progress import Progress

# glibc would keep much of what the builder frees while it goes on; so told, it gives it back.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def build_engine(
    graph: Path,
    contract: GraphContract,
    spec: EngineSpec,
    engine: Path,
    *,
    timing_cache: Path | None,
    progress: Progress,
) -> EngineEntry:
    """Check `graph`, build it as `spec` says, and write `engine`.

    Args:
        graph: the .onnx file, its weights beside it.
        contract: what the graph must be; its dimensions may be open.
        spec: what to build.
        engine: the file to write.
        timing_cache: file of kernel timings, read and extended; only TensorRT has one.
        progress: told of every step.

    Raises:
        BackendError: the graph breaks a rule of the parser, or the builder refuses it or dies.
        BundleError: the graph is not what the contract says.
        OSError: the engine cannot be written.
    """
    require_clean(graph, spec.options.compute_capabilities)
    sized = contract.with_sizes(capacity=spec.capacity)
    sized.check(*graph_tensors(graph), graph.name)
    job = Job(
        graph=str(graph),
        engine=str(engine),
        spec=spec,
        profiles=[shapes_of(sized, profile) for profile in spec.profiles],
        decomposable=spec.precision == "fp32",  # no flavour has a fused attention for it
        timing_cache=None if timing_cache is None else str(timing_cache),
    )
    built = _run(job, progress)
    aliases = contract.aliases
    if built.aliases != aliases:
        raise BackendError(
            f"{engine.name}: caches share memory as {built.aliases}, expected {aliases}; "
            f"{NAMES[spec.flavour]} {spec.version} cannot be used for this graph"
        )
    return EngineEntry(spec, built.aliases, built.attention, built.build_seconds, built.peak_memory)


def shapes_of(contract: GraphContract, profile: Profile) -> dict[str, list[list[int]]]:
    """Return the smallest, the most common and the largest shape of every input."""
    return {
        spec.name: [list(spec.with_sizes(**profile.at(which)).sizes) for which in range(3)]
        for spec in contract.inputs
    }


def graph_tensors(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the inputs and the outputs of the ONNX file at `path`."""
    import onnx

    def spec(info: Any) -> TensorSpec:
        kind = info.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
        return TensorSpec(info.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, tuple(shape))

    graph = onnx.load(path, load_external_data=False).graph
    return [spec(info) for info in graph.input], [spec(info) for info in graph.output]


def _run(job: Job, progress: Progress) -> Built:
    """Run the job in a process of its own, which ends with this function whatever happens."""
    activity = f"building {Path(job.engine).name}"
    what = f"{NAMES[job.spec.flavour]} {job.spec.version} could not build {Path(job.graph).name}"
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", Job.__module__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={**os.environ, **_ALLOCATOR},
            text=True,
        )
        with process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):  # it died: its answer is missing then
                    process.stdin.write(job.to_json())
                    process.stdin.close()
                for line in process.stdout:
                    answer = json.loads(line)
                    if "phase" in answer:
                        progress(activity, answer["done"], answer["total"], answer["phase"])
            finally:
                process.kill()
        if "result" in answer:
            return Built(**answer["result"])
        if answer.get("errno") is not None:
            raise OSError(answer["errno"], answer["error"], job.engine)
        messages.seek(0)
        last = messages.read().strip().rpartition("\n")[2]
    reason = answer.get("error") or f"the builder died with status {process.returncode}: {last}"
    raise BackendError(f"{what}: {' '.join(reason.split())}")
