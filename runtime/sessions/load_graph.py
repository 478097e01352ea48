"""Loading a graph in ONNX Runtime."""

import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poss_export.contract import GraphContract, TensorSpec
from poss_export.errors import BackendError
from poss_export.machine import installed

if TYPE_CHECKING:
    import onnxruntime

    from poss_export.runtime.sessions.ort import OrtOptions

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
# How long an idle thread waits awake. Target and drafter take turns, so by its default of milliseconds the
# threads of one steal the cores of the other: on 2 cores a draft call then took twice as long, and on a
# machine with other work a round over 10 times. This bridges the pauses within a call as well as any.
_SPIN_MICROSECONDS = 50
# TF32 would round fp32 to ten bits, and differently in the kernels of other widths.
_CUDA = {"use_tf32": "0"}
_SMALL_BYTES = 1024  # of a weight that stays in the graph itself


def load_graph(
    graph: Path | bytes,
    options: "OrtOptions",
    weights: Path | None = None,
    save_to: Path | None = None,
    *,
    ragged: bool = False,
    frugal: bool = False,
) -> "onnxruntime.InferenceSession":
    """Return a loaded graph: a file, or a serialised model whose weights lie in the folder `weights`.

    save_to: write there what it was optimised to, its weights beside it, also as this processor's kernels
    read them; who loads that shares them with all who do.

    ragged: shapes hardly ever come again, so that remembering the memory of each would only fill memory.
    frugal: keep no memory for the next call.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, or it refuses the graph.
    """
    _require_one_build()
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"ONNX Runtime cannot be imported ({error}); pip install poss-export") from error
    providers: list[Any] = ["CPUExecutionProvider"]
    missing = ""
    if options.provider == "cuda":
        _require_cuda(ort.get_available_providers())
        missing = _load_cuda_libraries()
        providers.insert(0, ("CUDAExecutionProvider", _CUDA))
    try:
        settings = _settings(options, weights, save_to)
        settings.enable_mem_pattern = not (ragged or frugal)
        settings.enable_cpu_mem_arena = not frugal
        session = ort.InferenceSession(graph, settings, providers=providers)
    except Exception as error:
        what = "the graph" if isinstance(graph, bytes) else repr(str(graph))
        raise BackendError(f"ONNX Runtime refuses {what}: {error}") from error
    if options.provider == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime could not start its CUDA provider{missing}; check the driver with nvidia-smi, or "
            "use the CPU"
        )
    return session


def check_graph(session: "onnxruntime.InferenceSession", contract: GraphContract, name: str) -> None:
    """Raise BundleError where the loaded graph `name` differs from its contract."""
    contract.check(_specs(session.get_inputs()), _specs(session.get_outputs()), name)


def _specs(nodes: Sequence["onnxruntime.NodeArg"]) -> list[TensorSpec]:
    return [TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]


def _settings(
    options: "OrtOptions", weights: Path | None, save_to: Path | None
) -> "onnxruntime.SessionOptions":
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors: they come as exceptions too
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = options.threads or 0
    entries = {"session.intra_op.spin_duration_us": str(_SPIN_MICROSECONDS)}
    if options.profile:
        settings.enable_profiling, settings.profile_file_prefix = True, options.profile
    if weights is not None:
        entries["session.model_external_initializers_file_folder_path"] = str(weights)
    if save_to is not None:
        settings.optimized_model_filepath = str(save_to)
        entries["session.optimized_model_external_initializers_file_name"] = f"{save_to.name}.data"
        entries["session.optimized_model_external_initializers_min_size_in_bytes"] = str(_SMALL_BYTES)
        entries["session.save_external_prepacked_constant_initializers"] = "1"
    for name, value in entries.items():
        settings.add_session_config_entry(name, value)
    return settings


def _require_one_build() -> None:
    """Raise BackendError where two builds of ONNX Runtime overwrite each other (docs/decisions/0002)."""
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install the one that is wanted"
        )


def _load_cuda_libraries() -> str:
    """Load CUDA's libraries out of packages, where no loader finds them; return which are missing."""
    import onnxruntime as ort

    with redirect_stdout(StringIO()) as said:  # it prints what fails
        ort.preload_dlls()
    failed = re.findall(r"Failed to load ([^:]+):", said.getvalue())
    return f" (not found: {', '.join(failed)})" if failed else ""


def _require_cuda(available: Sequence[str]) -> None:
    """Raise BackendError where this ONNX Runtime has no CUDA provider."""
    if "CUDAExecutionProvider" not in available:
        raise BackendError(
            f"this ONNX Runtime has no CUDA provider, only {', '.join(available)}: in a fresh environment "
            "run POSS_EXPORT_ONNXRUNTIME=gpu pip install poss-export, or use the CPU"
        )
