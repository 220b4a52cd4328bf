"""What an operator's Prometheus reads: one registry per server, units in the names, labels from closed sets.

Routes, jobs and the pool count here. An id, a prompt, a size or a key never becomes a label; a word that is in no set
is counted as "other", so the number of series is bounded whatever comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from omnimuse.observe.labels import OTHER, by_label

TASKS = frozenset(
    {
        *("text-to-image", "image-to-image", "text-to-video", "image-to-video", "video-to-video"),
        *("text-to-audio", "audio-to-audio", "chat", "text-to-text"),
    }
)
OUTCOMES = frozenset({"completed", "failed", "cancelled", "refused", "expired"})
REJECTIONS = frozenset(
    {"queue_full", "deadline_unreachable", "server_draining", "storage_full", "quota_exceeded", "worker_crash"}
)
CAUSES = frozenset({"exit", "hang", "silence", "start"})
PLACES = frozenset({"queued", "running", "disconnect"})
CHORES = frozenset({"starting jobs", "tidying up", "ending a job"})

NONE: Mapping[str, str] = MappingProxyType({})
_WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_BYTES = tuple(2.0**power for power in range(28, 42))
_NEEDS = tuple(2.0**power for power in range(20, 42))
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one server; `model` is the name it serves. Times in seconds."""

    def __init__(self, model: str = "") -> None:
        self._model = model
        self._registry = registry = CollectorRegistry()
        kind = ["model", "task"]
        self._requests = Counter(
            "omnimuse_requests_total", "Requests that ended.", [*kind, "outcome"], registry=registry
        )
        self._request_seconds = Histogram(
            "omnimuse_request_seconds", "From acceptance to the answer.", kind, buckets=_WAITS, registry=registry
        )
        self._queue_seconds = Histogram(
            "omnimuse_queue_seconds", "Waiting before the first step.", ["model"], buckets=_WAITS, registry=registry
        )
        self._step_seconds = Histogram(
            "omnimuse_step_seconds",
            "One step of what is drawn, or painted.",
            ["model"],
            buckets=_STEPS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "omnimuse_stage_seconds", "One stage of one request.", ["model", "stage"], buckets=_WAITS, registry=registry
        )
        self._unfinished = Gauge(
            "omnimuse_requests_unfinished", "Requests accepted and not ended.", ["model"], registry=registry
        )
        self._rejections = Counter(
            "omnimuse_admission_rejections_total", "Requests refused before any work.", ["reason"], registry=registry
        )
        self._cancelled = Counter("omnimuse_cancelled_total", "Requests given up.", ["where"], registry=registry)
        self._recovered = Counter("omnimuse_jobs_recovered_total", "Jobs found unfinished at start.", registry=registry)
        self._keys_stale = Gauge(
            "omnimuse_api_keys_stale", "1 while the file of keys cannot be read as it should.", registry=registry
        )
        self._failures = Counter(
            "omnimuse_background_failures_total", "Failures of work beside the requests.", ["chore"], registry=registry
        )
        self._pixels = Counter("omnimuse_output_pixels_total", "Pixels drawn, frames included.", registry=registry)
        self._tokens = Counter(
            "omnimuse_text_tokens_total",
            "Tokens of models that write: read, of these known from others that began alike, and written.",
            ["kind"],
            registry=registry,
        )
        self._of_workers(registry)

    def _of_workers(self, registry: CollectorRegistry) -> None:
        """What workers tell of themselves."""
        self._asleep = Gauge("omnimuse_asleep", "1 while the weights are away.", registry=registry)
        self._weights = Gauge(
            "omnimuse_weights_bytes",
            "Weights of one worker: a whole component, or the largest of its blocks that come in one at a time.",
            ["model", "component", "part"],
            registry=registry,
        )
        self._adapters = Gauge(
            "omnimuse_adapters_bytes",
            "Adapters in all workers: those that requests in progress wear, and idle ones.",
            ["model", "state"],
            registry=registry,
        )
        self._memory = Histogram(
            "omnimuse_request_peak_bytes",
            "The most that a worker kept of its device, for tensors of all requests and to come, during a request.",
            ["model"],
            buckets=_BYTES,
            registry=registry,
        )
        self._needs = Histogram(
            "omnimuse_request_needs_bytes",
            "What one output of a request takes beside the weights, as small ones of its kind foretold it.",
            ["model"],
            buckets=_NEEDS,
            registry=registry,
        )
        self._restarts = Counter(
            "omnimuse_worker_restarts_total", "Workers that were replaced.", ["cause"], registry=registry
        )
        self._lost = Counter(
            "omnimuse_pool_restarts_total",
            "Processes of a pool of the model that were replaced.",
            ["pool"],
            registry=registry,
        )
        self._workers = Gauge("omnimuse_workers", "Workers, ready and coming.", ["state"], registry=registry)
        self._retries = Counter(
            "omnimuse_forward_retries_total", "Forwards that failed and were tried again.", registry=registry
        )

    def ended(self, task: str, outcome: str, seconds: float) -> None:
        """A request that was accepted has ended, `seconds` after it came; `outcome` is one of OUTCOMES."""
        task = _known(task, TASKS)
        self._requests.labels(self._model, task, _known(outcome, OUTCOMES)).inc()
        self._request_seconds.labels(self._model, task).observe(seconds)

    def wrote(self, read: int, reused: int, written: int) -> None:
        """A text is finished; `reused` of the tokens that were `read` had been read before."""
        for kind, tokens in (("read", read), ("reused", reused), ("written", written)):
            self._tokens.labels(kind).inc(tokens)

    def drawn(
        self,
        pixels: int,
        timings: dict[str, float],
        steps: Sequence[float] = (),
        memory: int = 0,
        needs: int = 0,
        labels: Mapping[str, str] = NONE,
    ) -> None:
        """A worker finished a request: pixels over all outputs and frames, seconds per stage and of every step, the
        most bytes that it held meanwhile, those that one output needs beside the weights (0: unknown), and the `labels`
        of stages whose names do not say it.
        """
        self._pixels.inc(pixels)
        for label, taken in by_label(timings, labels).items():
            self._stage_seconds.labels(self._model, label).observe(taken)
        if memory:
            self._memory.labels(self._model).observe(memory)
        if needs:
            self._needs.labels(self._model).observe(needs)
        if "queue" in timings:
            self._queue_seconds.labels(self._model).observe(timings["queue"])
        for taken in steps:
            self._step_seconds.labels(self._model).observe(taken)

    def weigh(self, weights: Mapping[str, tuple[int, int]]) -> None:
        """What each component of a worker takes, and the largest of its blocks where these come in one at a time."""
        for component, (whole, block) in weights.items():
            self._weights.labels(self._model, component, "whole").set(whole)
            if block:
                self._weights.labels(self._model, component, "block").set(block)

    def wear(self, worn: int, idle: int) -> None:
        """The bytes of adapters in all workers that somebody wears, and that nobody does."""
        self._adapters.labels(self._model, "worn").set(worn)
        self._adapters.labels(self._model, "idle").set(idle)

    def rejected(self, reason: str) -> None:
        """A request was refused before any work; `reason` is one of REJECTIONS, the code of the error."""
        self._rejections.labels(_known(reason, REJECTIONS)).inc()

    def cancelled(self, where: str) -> None:
        """A request was given up by its client; `where` is one of PLACES."""
        self._cancelled.labels(_known(where, PLACES)).inc()

    def restarted(self, cause: str) -> None:
        """A worker was replaced; `cause` is one of CAUSES."""
        self._restarts.labels(_known(cause, CAUSES)).inc()

    def lost(self, pool: str, processes: int) -> None:
        """So many processes of that pool, by its name in the deploy file, were replaced."""
        self._lost.labels(pool).inc(processes)

    def staffed(self, ready: int, coming: int) -> None:
        """So many workers can take requests, and so many more are being started."""
        self._workers.labels("ready").set(ready)
        self._workers.labels("coming").set(coming)

    def retried(self, forwards: int) -> None:
        """So many forwards failed and were tried again, output by output: rare, or the model is slow for ever."""
        self._retries.inc(forwards)

    def recovered(self, jobs: int) -> None:
        """`jobs` were found unfinished when the server started, and were taken up again."""
        self._recovered.inc(jobs)

    def failed(self, chore: str) -> None:
        """Work beside the requests failed; `chore` is one of CHORES."""
        self._failures.labels(_known(chore, CHORES)).inc()

    def level(self, unfinished: int, keys_stale: bool = False, asleep: bool = False) -> None:
        """How many requests are accepted and not ended, whether the keys in use are not those of their file, and
        whether the weights are away.
        """
        self._asleep.set(asleep)
        self._unfinished.labels(self._model).set(unfinished)
        self._keys_stale.set(keys_stale)

    def render(self) -> tuple[bytes, str]:
        """Every number in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _known(word: str, words: frozenset[str]) -> str:
    return word if word in words else OTHER
