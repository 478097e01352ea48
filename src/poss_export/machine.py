"""What a measurement or a build ran on."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from poss_export.errors import InputError

_MOST_THREADS = 64  # where there are fewer cores
# Distributions that bring a module of the same name; a machine has one of them (docs/decisions/0002).
_BUILDS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package, of Python and of those libraries that are installed, by name."""
    found = {"poss-export": version("poss-export"), "python": platform.python_version()}
    for name in libraries:
        for build in filter(None, map(installed, _BUILDS.get(name, (name,)))):
            found[name] = build
    return found


def installed(distribution: str) -> str | None:
    """Return the version of a distribution, or None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_threads(threads: int | None) -> None:
    """Raise InputError where so many threads cannot help: libraries start and end all of them."""
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        bound = "at least 1" if threads < 1 else f"at most {most} on this machine"
        raise InputError(f"threads is {threads}; it must be {bound}", options=("threads",))


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int] | None:
    """Return the bytes of memory and swap that this process may use, in all and free; None if unknown."""
    information = Path("/proc/meminfo")
    if not information.exists():
        return None
    sizes = dict[str, int]()
    for line in information.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = 1024 * int(rest.split()[0])
    total, free = (
        sizes[name] + sizes[swap] for name, swap in (("MemTotal", "SwapTotal"), ("MemAvailable", "SwapFree"))
    )
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and (most := limit.read_text(encoding="ascii").strip()).isdecimal():
        total, free = min(total, int(most)), min(free, int(most))
    return total, free


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process had, or None where the system does not say."""
    status = Path("/proc/self/status")  # getrusage counts what the parent had before it became this one
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
