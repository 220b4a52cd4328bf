"""Spans of what the server did, for OpenTelemetry (`omnimuse[otel]`): a request or job, its wait, its stages.

A span is made when its work has ended, with the times that were measured anyway: drawing is no slower for it. A request
whose client sent a `traceparent` is part of the client's trace. Prompts and keys are in no span.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from omnimuse import __version__
from omnimuse.core.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PATIENCE = 5.0
"""Seconds that a collector has to take spans, at the end of the server as well."""


@dataclass(frozen=True)
class Worked:
    """Work that ended just now, `seconds` after it was accepted; `timings` are seconds per stage, as far as known."""

    what: str
    id: str
    task: str
    outcome: str
    seconds: float
    tenant: str = ""
    error: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None


class Tracer(Protocol):
    """Whoever wants to know of work that ended."""

    def ended(self, worked: Worked) -> None:
        """Take note of it."""


class NoTracer:
    """Nobody."""

    def ended(self, worked: Worked) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Traces:
    """Makes spans with a provider of OpenTelemetry."""

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider, self._model = provider, model
        self._tracer = provider.get_tracer("omnimuse", __version__)

    def ended(self, worked: Worked) -> None:
        """A span of the whole, and below it one of each stage, in the order in which they were timed."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time()
        began = end - worked.seconds
        parent = {} if worked.parent is None else {"traceparent": worked.parent}
        whole = self._tracer.start_span(
            worked.what,
            TraceContextTextMapPropagator().extract(parent),
            SpanKind.SERVER,
            attributes={f"omnimuse.{name}": value for name, value in self._about(worked).items() if value},
            start_time=_nanoseconds(began),
        )
        if worked.outcome == "failed":
            whole.set_status(Status(StatusCode.ERROR, worked.error))
        context, at = set_span_in_context(whole), began
        for stage, seconds in worked.timings.items():
            part = self._tracer.start_span(stage, context, start_time=_nanoseconds(at))
            at = min(at + seconds, end)
            part.end(_nanoseconds(at))
        whole.end(_nanoseconds(end))

    def close(self) -> None:
        """Send what is left, and end."""
        self._provider.force_flush(int(PATIENCE * 1000))
        self._provider.shutdown()

    def _about(self, worked: Worked) -> dict[str, str]:
        return {
            "id": worked.id,
            "model": self._model,
            "task": worked.task,
            "outcome": worked.outcome,
            "tenant": worked.tenant,
            "error": worked.error,
        }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def open_traces(endpoint: str | None, model: str) -> Traces | NoTracer:
    """What sends spans to a collector at `endpoint` (OTLP over HTTP); ConfigError where that cannot be.

    OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER ...) count.
    """
    if endpoint is None:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'--otel-endpoint needs {error.name}, which is not installed: pip install "omnimuse[otel]"'
        ) from None
    ours = Resource({SERVICE_NAME: "omnimuse", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=PATIENCE)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider, model)
