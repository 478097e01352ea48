"""A function that lives in a process of its own, so that engines do not share threads, memory or caches."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Setup:
    """What an engine is opened with."""

    model: Path  # the bundle, or what `peers` made for the engine
    stop_ids: tuple[int, ...]
    capacity: int  # tokens of prompt and answer
    threads: int


class Worker(Generic[P, R]):
    """What `opener` returns for a setup, called in its own process; arguments and results are pickled."""

    def __init__(self, opener: Callable[[Setup], Callable[P, R]], setup: Setup) -> None:
        """Start the process and load the engine."""
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            self.pool.submit(_open, opener, setup).result()
        except BaseException:
            self.pool.shutdown()
            raise

    def __enter__(self) -> "Worker[P, R]":
        """Nothing more to acquire."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self.pool.shutdown()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in its process."""
        result: R = self.pool.submit(_call, *args, **kwargs).result()
        return result


_function: Callable[..., Any]  # of this process


def _open(opener: Callable[[Setup], Callable[..., Any]], setup: Setup) -> None:
    global _function
    _function = opener(setup)


def _call(*args: Any, **kwargs: Any) -> Any:
    return _function(*args, **kwargs)
