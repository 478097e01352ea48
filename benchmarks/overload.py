"""A server under more load than it can take: what is refused, whether anything is wrong, and its memory.

    python -m benchmarks.overload BUNDLE --prompts FILE.jsonl --minutes 30 --factor 2

Requests arrive by chance, on average so many times as fast as a closed loop of clients, as many as the queue
holds, got answers before. Some clients misbehave: they vanish behind the first piece, leave a body half-sent,
or read slowly. All others are to get the answer of the bundle alone, or a clean refusal. In the end the
server is told to stop, amid all that.

Exits with 1 where an answer is wrong, or something else than an answer or a refusal came.
"""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import numpy as np
import openai

from benchmarks import environment, questions
from poss_export.evaluation.answers import answer
from poss_export.runtime.bundle import open_bundle

Manner = Literal["good", "vanishes", "half a body", "reads slowly"]
MANNERS: tuple[Manner, ...] = (*(("good",) * 17), "vanishes", "half a body", "reads slowly")
_SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Asked:
    """What is asked, and what the bundle alone answers."""

    ids: list[int]
    text: str


@contextlib.contextmanager
def serving(bundle: Path, threads: int, queue: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a server's process and its URL."""
    command = "from poss_export.cli.main import main; main()"
    options = ["--port", "0", "--threads", str(threads), "--queue", str(queue), "--model-name", "bundle"]
    with subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(bundle), *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        told = next((line for line in process.stderr if line.startswith("serving")), None)
        if told is None:
            raise click.ClickException("the server did not start")
        rest = threading.Thread(target=shutil.copyfileobj, args=(process.stderr, sys.stderr))
        rest.start()
        try:
            yield process, told.rsplit(" ", 1)[1].strip()
        finally:
            process.kill()
            rest.join()


@dataclass
class Load:
    """The clients, and what became of them."""

    url: str
    tokens: int
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the client that all well-behaved ones share."""
        self._client = openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=600)

    async def ask(self, asked: Asked, manner: Manner = "good") -> None:
        """Be one client, and note what became of it."""
        try:
            outcome = await (self._good(asked, manner) if manner != "half a body" else self._half(asked))
        except openai.RateLimitError as error:
            outcome = "refused" if "retry-after" in error.response.headers else "refused, without a time"
        except (openai.OpenAIError, OSError) as error:
            ends = getattr(error, "code", None) == "shutting_down"
            outcome = "told of the end" if ends else f"failed: {type(error).__name__}: {error}"
        self.outcomes[outcome] += 1

    async def _good(self, asked: Asked, manner: Manner) -> str:
        fields: dict[str, Any] = {"max_tokens": self.tokens, "temperature": 0, "stream": True}
        stream = await self._client.completions.create(model="bundle", prompt=asked.ids, **fields)
        text, reason = "", None
        async with stream:
            async for chunk in stream:
                if manner == "vanishes":
                    return manner
                if manner == "reads slowly":
                    await asyncio.sleep(0.5)
                text, reason = text + chunk.choices[0].text, chunk.choices[0].finish_reason
        if reason is None or text != asked.text:
            self.wrong.append(text)
            return "wrong"
        return "right"

    async def _half(self, asked: Asked) -> str:
        place = urlsplit(self.url)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        writer.write(b'Content-Length: 999\r\n\r\n{"model": "bundle"')
        await writer.drain()
        await asyncio.sleep(1)
        writer.close()
        return "half a body"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def capacity(self, asked: Sequence[Asked], clients: int) -> float:
        """Return how many requests a second so many clients get answered, each twice."""
        requests = 2 * clients
        left, began = iter([*zip(range(requests), cycle(asked), strict=False)]), time.perf_counter()

        async def loop() -> None:
            for _, one in left:
                await self.ask(one)

        await asyncio.gather(*(loop() for _ in range(clients)))
        return requests / (time.perf_counter() - began)

    async def arrive(self, asked: Sequence[Asked], rate: float, seconds: float, seed: int) -> set[Any]:
        """Let clients arrive at a rate; return those that are not done when the time is over."""
        rng, end, tasks = np.random.default_rng(seed), time.perf_counter() + seconds, set[Any]()
        while time.perf_counter() < end:
            await asyncio.sleep(float(rng.exponential(1 / rate)))
            one, manner = asked[int(rng.integers(len(asked)))], MANNERS[int(rng.integers(len(MANNERS)))]
            task = asyncio.create_task(self.ask(one, manner))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return tasks


async def memory(process: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """Return seconds and MB of memory of a process, noted until the task is cancelled."""
    noted, began = list[tuple[float, float]](), time.perf_counter()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
            (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
            noted.append((time.perf_counter() - began, kilobytes / 1000))
            await asyncio.sleep(_SAMPLE_SECONDS)
    return noted


def growth(noted: Sequence[tuple[float, float]]) -> float:
    """Return MB a minute of memory, without the first fifth, which is warming up."""
    seconds, megabytes = np.array(noted[len(noted) // 5 :]).T
    return float(np.polyfit(seconds / 60, megabytes, 1)[0]) if len(seconds) > 2 else float("nan")


async def measure(
    process: subprocess.Popen[str],
    load: Load,
    asked: Sequence[Asked],
    clients: int,
    factor: float,
    minutes: float,
    seed: int,
) -> dict[str, Any]:
    """Return what became of all clients, and of the server."""
    capacity = await load.capacity(asked, clients)
    load.outcomes.clear()
    noting = asyncio.create_task(memory(process))
    left = await load.arrive(asked, factor * capacity, 60 * minutes, seed)
    noting.cancel()
    noted, in_work = await noting, len(left)
    process.send_signal(signal.SIGTERM)
    told = time.perf_counter()
    await asyncio.gather(*left)
    code = await asyncio.to_thread(process.wait, 60)
    await load.close()
    return {
        "capacity_per_second": capacity,
        "outcomes": dict(load.outcomes.most_common()),
        "wrong": load.wrong,
        "memory_mb": (noted[0][1], noted[-1][1]),
        "memory_mb_per_minute": growth(noted),
        "in_work_at_the_end": in_work,
        "seconds_to_end": time.perf_counter() - told,
        "exit_code": code,
    }


@click.command(help=__doc__.partition("\n")[0])
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@questions.options
@click.option("--minutes", default=30.0, show_default=True)
@click.option(
    "--factor", default=2.0, show_default=True, help="Arrivals, in what is answered without a rest."
)
@click.option("--queue", default=8, show_default=True, help="Answers that may wait.")
@click.option("--max-new-tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of arrivals and manners.")
@click.option("--threads", default=environment.cores(), show_default="cores")
@click.option("--json", "report", type=environment.REPORT, help="Write the figures here.")
def main(
    bundle: Path,
    prompts: tuple[Path, ...],
    limit: int | None,
    minutes: float,
    factor: float,
    queue: int,
    max_new_tokens: int,
    seed: int,
    threads: int,
    report: Path | None,
) -> None:
    """Parse, measure, print."""
    machine = environment.record()
    with open_bundle(bundle, threads=threads) as alone:
        known = [one.ids for one in questions.load(alone.text, prompts, limit)]
        texts = [answer(alone, ids, max_new_tokens, target_only=True).text for ids in known]
    asked = [Asked(ids, text) for ids, text in zip(known, texts, strict=True)]
    with serving(bundle, threads, queue) as (process, url):
        figures = asyncio.run(
            measure(process, Load(url, max_new_tokens), asked, queue, factor, minutes, seed)
        )
    for name, value in figures.items():
        click.echo(f"{name.replace('_', ' ')}: {value}")
    if report is not None:
        environment.write(report, machine, figures)
    clean = {"right", "refused", "vanishes", "half a body", "told of the end"}
    sys.exit(bool(figures["outcomes"].keys() - clean or figures["exit_code"]))


if __name__ == "__main__":
    environment.run(main)
