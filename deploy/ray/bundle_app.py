"""A bundle behind Ray Serve: replicas on one machine or many, each a process with a scheduler of its own.

    cd deploy/ray && serve run bundle_app:application bundle=/bundles/smollm2 replicas=2

Arguments are those of `application`. What clients see is what `poss-export serve` shows (docs/serving.md).
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from starlette.applications import Starlette

from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.scheduler import Scheduler
from poss_export.server.app import make_app
from poss_export.server.run import warm
from poss_export.server.settings import Settings, read_keys


class Arguments(BaseModel):
    """What a deployment is told; the folder of the bundle must be there on every machine.

    `replicas` is their number, or with `most_replicas` the least: then there are as many as keep
    `target_ongoing` requests each. `threads` is those of ONNX Runtime and the cores that Ray sets aside.
    """

    bundle: Path
    model: str | None = None
    replicas: int = 1
    most_replicas: int | None = None
    target_ongoing: float = 4.0
    slots: int = 1
    queue: int = 64
    threads: int = 1
    key_file: Path | None = None


@serve.deployment
@serve.ingress()
class Replica:
    """One process that serves the bundle."""

    def __init__(self, arguments: Arguments) -> None:
        """Load the engines, and make an answer."""
        with ExitStack() as stack:
            bundle = stack.enter_context(
                open_bundle(arguments.bundle, threads=arguments.threads, slots=arguments.slots)
            )
            self._scheduler = stack.enter_context(Scheduler(bundle, queue=arguments.queue))
            warm(self._scheduler)
            self._entered = stack.pop_all()
        self._settings = Settings(arguments.model or arguments.bundle.name, read_keys(arguments.key_file))

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return what answers requests."""
        return make_app(self._scheduler, self._settings)

    def check_health(self) -> None:
        """Raise where the engine has ended, so that Ray starts another replica."""
        if not self._scheduler.alive:
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        """Free the engines; Ray waits for the answers before."""
        if hasattr(self, "_entered"):
            self._entered.close()


def application(arguments: Arguments) -> serve.Application:
    """Return what `serve run` and `serve deploy` start."""
    scale: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.most_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": arguments.replicas,
                "max_replicas": arguments.most_replicas,
                "target_ongoing_requests": arguments.target_ongoing,
            }
        }
    return Replica.options(
        name="bundle",
        max_ongoing_requests=arguments.slots + arguments.queue,  # beyond these the replica itself refuses
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_cpus": arguments.threads},
        **scale,
    ).bind(arguments)
