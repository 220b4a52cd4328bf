"""Spans of requests and jobs, as OpenTelemetry's own exporter in memory gets them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.server.app import build_app
from omnimuse.server.options import ServeOptions
from omnimuse.server.traces import NoTracer, Traces, Worked, open_traces
from tests.server.asgi import call, scope
from tests.server.picture_server import MODEL, service_in
from tests.server.video_rig import rig

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry is not installed")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collected:
    """A tracer, and the spans that it made."""

    def __init__(self) -> None:
        self._exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = Traces(provider, MODEL)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """By name, in the order of their beginnings."""
        found = sorted(self._exporter.get_finished_spans(), key=lambda span: (span.start_time, span.name != "request"))
        return {span.name: span for span in found}


def post(folder: Path, collected: Collected, body: bytes, **headers: str) -> None:
    async def main() -> None:
        async with service_in(folder) as (_, service):
            service.workers.fail["bad"] = ModelError("no")  # type: ignore[attr-defined]
            app = build_app(replace(service, tracer=collected.tracer))
            given = {"content-type": "application/json", "x-request-id": "mine", **headers}
            await call(app, scope("POST", "/v1/images/generations", given), [body])

    asyncio.run(main())


def test_a_request_is_a_span_with_its_wait_and_its_stages_inside(tmp_path: Path) -> None:
    collected = Collected()
    post(tmp_path, collected, b'{"prompt": "a secret ring", "num_inference_steps": 2}')
    spans = collected.spans
    assert set(spans) == {"request", "queue", "denoise"}
    whole = spans["request"]
    about = {"id": "mine", "model": MODEL, "task": "text-to-image", "outcome": "completed"}
    assert whole.attributes == {f"omnimuse.{name}": value for name, value in about.items()}
    for stage in ("queue", "denoise"):
        part = spans[stage]
        assert part.parent is not None and part.parent.span_id == whole.context.span_id
        assert whole.start_time <= part.start_time <= part.end_time <= whole.end_time
    assert "secret" not in str([span.to_json() for span in spans.values()])


def test_a_request_of_a_client_that_traces_is_part_of_its_trace(tmp_path: Path) -> None:
    collected = Collected()
    post(tmp_path, collected, b'{"prompt": "a ring"}', traceparent=f"00-{TRACE}-{SPAN}-01")
    whole = collected.spans["request"]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert whole.parent is not None and f"{whole.parent.span_id:016x}" == SPAN
    post(tmp_path / "again", other := Collected(), b'{"prompt": "a ring"}', traceparent="00-nonsense")
    assert other.spans["request"].parent is None


def test_a_request_that_fails_says_with_which_code(tmp_path: Path) -> None:
    collected = Collected()
    post(tmp_path, collected, b'{"prompt": "a bad ring"}')
    whole = collected.spans["request"]
    assert not whole.status.is_ok and whole.status.description == "model_error"
    assert whole.attributes is not None and whole.attributes["omnimuse.outcome"] == "failed"


def test_a_job_is_a_span_too(tmp_path: Path) -> None:
    collected = Collected()

    async def main() -> None:
        async with rig(tmp_path, tracer=collected.tracer) as found:
            job = await found.submit(tenant="alice")
            await found.ended(job)
            attributes = collected.spans["job"].attributes
            assert attributes is not None
            assert (attributes["omnimuse.id"], attributes["omnimuse.tenant"]) == (job.id, "alice")
            assert attributes["omnimuse.task"] == "text-to-video"

    asyncio.run(main())
    assert set(collected.spans) == {"job", "queue", "denoise"}


def test_stages_that_overlap_end_with_the_whole() -> None:
    """Stages of several outputs are summed, so together they may take longer than the work did."""
    collected = Collected()
    timings = {"queue": 0.5, "denoise": 3.0, "encode": 1.0}
    collected.tracer.ended(Worked("request", "mine", "text-to-image", "completed", 2.0, timings=timings))
    whole = collected.spans.pop("request")
    assert all(span.end_time <= whole.end_time for span in collected.spans.values())


def test_without_a_collector_there_are_no_spans_and_one_that_is_no_url_is_refused(tmp_path: Path) -> None:
    assert isinstance(open_traces(None, MODEL), NoTracer)
    with pytest.raises(ConfigError, match="is no URL"):
        ServeOptions(tmp_path, "m", collector="127.0.0.1:4318")


def test_a_server_without_the_extra_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from omnimuse.server.traces import open_traces; open_traces('http://127.0.0.1:1', 'm')"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'which is not installed: pip install "omnimuse[otel]"' in told.stderr


def test_spans_reach_a_collector_over_http() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    came: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        traces = open_traces(f"http://127.0.0.1:{server.server_port}/", MODEL)
        traces.ended(Worked("job", "mine", "text-to-video", "completed", 1.0))
        traces.close()
        server.shutdown()
        thread.join(10)
    [(path, content)] = came
    assert path == "/v1/traces" and b"omnimuse.id" in content and b"mine" in content
