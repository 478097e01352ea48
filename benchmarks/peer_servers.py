"""Peers that answer many clients, driven in a process of their own as their servers drive them.

llama-cpp-python's server answers one request at a time, in the order of asking: a lock is around its model.
OpenVINO GenAI batches continuously, a step at a time, as OpenVINO Model Server uses it. Neither has HTTP
around it here, and nor has ours.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from benchmarks.contestants import EIGHT, FULL
from benchmarks.loads import Answered, Load
from benchmarks.peer_engines import open_llama, openvino_properties
from benchmarks.peers import Peers
from benchmarks.workers import Setup
from poss_export.errors import InputError

Step = tuple[int, list[int], bool]  # number of a request, its new tokens, whether they are the last


class Engine(Protocol):
    """What answers requests, a step at a time."""

    def add(self, number: int, ids: list[int], tokens: int) -> None:
        """Take a request of at most so many tokens."""

    def step(self) -> Iterable[Step]:
        """Make the next tokens of what was asked."""


Answer = Callable[[Load, Sequence[list[int]], int, int], tuple[float, list[Answered]]]


def drive(
    engine: Engine, load: Load, asked: Sequence[list[int]], tokens: int, seed: int
) -> tuple[float, list[Answered]]:
    """Let requests come as the load says; return the seconds until all are answered, and the answers."""
    start = time.perf_counter()
    came = dict[int, float]()
    made: dict[int, list[int]] = {number: [] for number in range(len(asked))}
    pieces: dict[int, list[tuple[float, int]]] = {number: [] for number in made}
    left = deque(made)
    due = deque(load.arrivals(len(asked), seed))

    def ask() -> None:
        number = left.popleft()
        came[number] = time.perf_counter() - start
        engine.add(number, asked[number], tokens)

    for _ in range(min(load.clients or 0, len(left))):
        ask()
    open_ones = len(came)
    while open_ones or left:
        while due and due[0] <= time.perf_counter() - start:
            due.popleft()
            ask()
            open_ones += 1
        if not open_ones:
            time.sleep(max(due[0] - (time.perf_counter() - start), 0))
            continue
        for number, new, last in engine.step():
            made[number] += new
            if new:
                pieces[number].append((time.perf_counter() - start, len(new)))
            open_ones -= last
            if last and left and load.clients is not None:
                ask()
                open_ones += 1
    seconds = time.perf_counter() - start
    return seconds, [Answered(n, tuple(made[n]), came[n], tuple(pieces[n])) for n in made]


class _LlamaInTurns:
    """llama.cpp by llama-cpp-python, one answer after the other."""

    def __init__(self, setup: Setup, float32_cache: bool) -> None:
        self._model, self._stop = open_llama(setup, float32_cache=float32_cache), setup.stop_ids
        self._waiting = deque[tuple[int, list[int], int]]()
        self._answer: Iterator[Step] = iter(())

    def add(self, number: int, ids: list[int], tokens: int) -> None:
        self._waiting.append((number, ids, tokens))

    def step(self) -> Iterable[Step]:
        if (made := next(self._answer, None)) is None:
            self._answer = self._made(*self._waiting.popleft())
            made = next(self._answer)
        return [made]

    def _made(self, number: int, ids: list[int], tokens: int) -> Iterator[Step]:
        self._model.reset()  # or it would reuse the cache of an earlier, equal prompt
        stream = self._model.generate(ids, temp=0.0, repeat_penalty=1.0)
        for made, token in enumerate(stream, start=1):
            last = token in self._stop or made == tokens
            yield number, [token], last
            if last:
                return


class _OpenvinoBatches:
    """OpenVINO GenAI's continuous batching, with its own settings but for caches of prompts."""

    def __init__(self, setup: Setup, float32: bool) -> None:
        import openvino_genai as ov

        scheduler = ov.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # or a prompt that comes again would be read already
        properties = openvino_properties(setup, float32)
        self._pipeline = ov.ContinuousBatchingPipeline(str(setup.model), scheduler, "CPU", properties)
        self._stop, self._handles = set(setup.stop_ids), dict[int, Any]()
        self._requests = count()

    def add(self, number: int, ids: list[int], tokens: int) -> None:
        import numpy as np
        import openvino_genai as ov
        from openvino import Tensor

        config = ov.GenerationConfig()
        config.max_new_tokens, config.stop_token_ids = tokens, self._stop
        prompt = Tensor(np.array([ids], dtype=np.int64))
        self._handles[number] = self._pipeline.add_request(next(self._requests), prompt, config)

    def step(self) -> Iterator[Step]:
        from openvino_genai import GenerationStatus

        self._pipeline.step()
        for number, handle in list(self._handles.items()):
            last, new = handle.get_status() != GenerationStatus.RUNNING, list[int]()
            while handle.can_read():
                (output,) = handle.read().values()
                new += output.generated_ids
            if last:
                del self._handles[number]
            if new or last:
                yield number, new, last


def llama_in_turns(setup: Setup, *, float32_cache: bool = False) -> Answer:
    """llama-cpp-python as its server uses it."""
    return partial(drive, _LlamaInTurns(setup, float32_cache))


def openvino_batches(setup: Setup, *, float32: bool = False) -> Answer:
    """OpenVINO GenAI's continuous batching pipeline."""
    return partial(drive, _OpenvinoBatches(setup, float32))


@dataclass(frozen=True)
class Server:
    """A peer: what it needs, how it opens, its files, and whose quality it has (`contestants.QUALITY`)."""

    module: str
    open: Callable[[Setup], Answer]
    files: Callable[[Peers], Path]
    quality: str


_INT8 = partial(Peers.openvino, weights="int8")
SERVERS = {
    "llama-cpp-python fp32": Server(
        "llama_cpp", partial(llama_in_turns, float32_cache=True), Peers.gguf, FULL
    ),
    "llama-cpp-python Q8_0": Server(
        "llama_cpp", llama_in_turns, partial(Peers.quantised_gguf, kind="Q8_0"), EIGHT
    ),
    "OpenVINO GenAI fp32": Server(
        "openvino_genai", partial(openvino_batches, float32=True), Peers.openvino, FULL
    ),
    "OpenVINO GenAI int8": Server("openvino_genai", openvino_batches, _INT8, EIGHT),
}


def set_up(
    quality: str, peers: Callable[[], Peers], setup: Callable[[Path], Setup]
) -> tuple[dict[str, Setup], dict[str, str]]:
    """Return how to open the servers of a quality, and why others cannot be, by name."""
    found, missing = dict[str, Setup](), dict[str, str]()
    for name, server in SERVERS.items():
        if server.quality != quality:
            continue
        if find_spec(server.module) is None:
            missing[name] = "not installed; see benchmarks/README.md"
            continue
        try:
            found[name] = setup(server.files(peers()))
        except InputError as error:
            missing[name] = str(error)
    return found, missing
