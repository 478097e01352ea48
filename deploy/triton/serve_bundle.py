"""A bundle in Triton Inference Server, through PyTriton: for fleets that speak Triton's protocol.

    python deploy/triton/serve_bundle.py /bundles/smollm2 --threads 2

The model takes `messages` (a JSON list, as OpenAI's API has it), `max_new_tokens`, and perhaps `temperature`
and `seed`; it is decoupled: a request has a response for each piece of text, the last with a
`finish_reason`. `ask.py` is a client.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.exceptions import PyTritonInvalidOperationError
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from poss_export.errors import BusyError, InputError
from poss_export.runtime.answers import follow
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.scheduler import Done, Scheduler

INPUTS = (
    Tensor(name="messages", dtype=bytes, shape=(1,)),
    Tensor(name="max_new_tokens", dtype=np.int32, shape=(1,)),
    Tensor(name="temperature", dtype=np.float32, shape=(1,), optional=True),
    Tensor(name="seed", dtype=np.int64, shape=(1,), optional=True),
)
OUTPUTS = (
    Tensor(name="text", dtype=bytes, shape=(1,)),
    Tensor(name="finish_reason", dtype=bytes, shape=(1,)),  # empty but for the last response
)


class Model:
    """What Triton calls with a request."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Answer with an entered scheduler."""
        self._scheduler = scheduler

    def __call__(self, requests: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Yield the responses to the one request that is given at a time."""
        (asked,) = requests
        try:
            yield from ([_response(text, reason)] for text, reason in self._answer(asked))
        except (BusyError, InputError, ValueError) as error:
            raise PyTritonInvalidOperationError(str(error)) from error

    def _answer(self, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
        messages = json.loads(asked["messages"].item())
        sampling = Sampling(
            temperature=float(asked["temperature"].item()) if "temperature" in asked else 0.0,
            seed=int(asked["seed"].item()) if "seed" in asked else None,
        )
        ids = self._scheduler.bundle.encode(messages)
        tokens = int(asked["max_new_tokens"].item())
        for event in follow(self._scheduler, ids, max_new_tokens=tokens, sampling=sampling):
            if isinstance(event, Done):
                yield "", event.generation.finish_reason
            else:
                yield event.text, ""


def _response(text: str, reason: str) -> dict[str, Any]:
    return {"text": np.array([text.encode()]), "finish_reason": np.array([reason.encode()])}


def main() -> None:
    """Parse, load, serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--name", default="bundle", help="the model's name")
    parser.add_argument("--slots", type=int, default=1, help="answers made at once")
    parser.add_argument("--waiting", type=int, default=8, help="answers that may wait in the engine")
    parser.add_argument("--threads", type=int, default=None, help="of ONNX Runtime")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    asked = parser.parse_args()
    config = TritonConfig(
        http_address=asked.host,
        grpc_address=asked.host,
        http_port=asked.http_port,
        grpc_port=asked.grpc_port,
        allow_metrics=False,
    )
    with (
        open_bundle(asked.bundle, threads=asked.threads, slots=asked.slots) as bundle,
        Scheduler(bundle, queue=asked.waiting) as scheduler,
        Triton(config=config) as triton,
    ):
        triton.bind(
            model_name=asked.name,
            infer_func=[Model(scheduler)] * (asked.slots + asked.waiting),  # each follows one answer
            inputs=INPUTS,
            outputs=OUTPUTS,
            config=ModelConfig(batching=False, decoupled=True),
        )
        triton.serve()


if __name__ == "__main__":
    main()
