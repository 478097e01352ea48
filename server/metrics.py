"""What Prometheus is told: requests, the queue, tokens, what speculation gives, and how long things take."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from poss_export.runtime.generation import Generation
from poss_export.runtime.scheduler import Done, Piece, Scheduler

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FINE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds
_COARSE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_OF_LATE = 0.1  # the newest request's share in what is typical


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Begin with nothing asked; the queue is looked at when somebody reads the figures."""
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"poss_export_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"poss_export_{name}", text, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"poss_export_{name}_seconds", text, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests that were answered.", "path", "status")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.tokens = counter("generated_tokens", "Tokens emitted.")
        self.rounds = counter("rounds", "Rounds of all answers, without the prompts' own.")
        self.drafted = counter("draft_tokens", "Tokens proposed.")
        self.accepted = counter("accepted_draft_tokens", "Proposed tokens that were accepted.")
        self.first = seconds("time_to_first_token", "From a request's arrival to its first text.", _COARSE)
        self.between = seconds("time_between_tokens", "Between pieces of text, over their tokens.", _FINE)
        self.whole = seconds("request", "From a request's arrival to the end of its answers.", _COARSE)
        self.typical_seconds = 1.0  # that a request took of late
        self._answers = self._tokens = self._rounds = 0
        gauge("tau", "Mean tokens that a round emitted.").set_function(lambda: self.tau)
        gauge("running", "Answers in the making.").set_function(lambda: scheduler.running)
        gauge("waiting", "Answers that wait to be begun.").set_function(lambda: scheduler.waiting)
        gauge("slots", "Answers that can be made at once.").set(scheduler.slots)

    @property
    def tau(self) -> float:
        """Mean tokens that a round emitted, of all answers; 0 before the first."""
        return (self._tokens - self._answers) / self._rounds if self._rounds else 0.0

    def expose(self) -> bytes:
        """Return all figures in Prometheus' text form."""
        return generate_latest(self._registry)

    def note(self, answer: Generation) -> None:
        """Count what an answer took."""
        self.tokens.inc(answer.tokens)
        self.rounds.inc(answer.rounds)
        self.drafted.inc(answer.summary.num_draft_tokens)
        self.accepted.inc(answer.summary.num_accepted_draft_tokens)
        self._answers += 1
        self._tokens += answer.tokens
        self._rounds += answer.rounds


class Watch:
    """The clock of one request, which arrives when it is made."""

    def __init__(self, metrics: Metrics) -> None:
        """Start it."""
        self._metrics = metrics
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}  # when the newest piece of which answer came

    def tell(self, number: int, event: Piece | Done) -> None:
        """Note what came of which answer of the request."""
        metrics, now = self._metrics, time.perf_counter()
        if isinstance(event, Done):
            metrics.note(event.generation)
            return
        if number in self._last:
            metrics.between.observe((now - self._last[number]) / max(len(event.token_ids), 1))
        else:
            metrics.first.observe(now - self._began)
        self._last[number] = now

    def end(self) -> None:
        """Note that all answers are done."""
        took = time.perf_counter() - self._began
        self._metrics.whole.observe(took)
        self._metrics.typical_seconds += _OF_LATE * (took - self._metrics.typical_seconds)
