"""What runs a bundle: the library, its version and the device."""

from importlib.metadata import version

from poss_export.engine_spec import MODULES, Backend
from poss_export.machine import cores, processor
from poss_export.runtime.sessions.cuda import device_name
from poss_export.runtime.sessions.ort import Provider


def engine_facts(backend: Backend, provider: Provider, threads: int | None) -> dict[str, str | int]:
    """Return what runs a bundle; what of it changes, changes times too."""
    if backend == "onnxruntime":
        import onnxruntime

        facts: dict[str, str | int] = {
            "backend": backend,
            "provider": provider,
            "version": onnxruntime.__version__,
        }
        if provider == "cpu":
            return {**facts, "device": processor(), "threads": threads or cores()}
        return {**facts, "device": device_name()}
    return {"backend": backend, "version": version(MODULES[backend]), "device": device_name()}
