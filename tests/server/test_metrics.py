"""What Prometheus reads, and the description of the interface."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from omnimuse.server.errors import CODES
from omnimuse.server.metrics import Metrics
from omnimuse.server.openapi import Operation, document


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, kind = metrics.render()
    assert kind.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_what_happened_is_counted_under_names_with_units() -> None:
    metrics = Metrics("demo")
    metrics.ended("text-to-image", "completed", 2.0)
    timings = {"queue": 0.5, "denoise": 1.0, "encode prompt": 0.25, "encode negative prompt": 0.25, "init latents": 2.0}
    timings |= {"vae.decode": 0.25, "decode": 0.5, "forward": 0.125, "their_stage": 4.0, "strange": 1.0}
    labels = {"their_stage": "vae.encode", "strange": "no label"}
    metrics.drawn(16384, timings, steps=(0.002, 0.098), memory=2**30, needs=2**26, labels=labels)
    metrics.rejected("queue_full")
    metrics.cancelled("disconnect")
    metrics.restarted("hang")
    metrics.staffed(3, 1)
    metrics.retried(2)
    metrics.recovered(3)
    metrics.level(5, asleep=True)
    metrics.weigh({"transformer": (4000, 500), "vae": (300, 0)})
    metrics.wear(70, 30)
    found = samples(metrics)
    ours = (("model", "demo"), ("task", "text-to-image"))
    assert found["omnimuse_requests_total", (ours[0], ("outcome", "completed"), ours[1])] == 1
    assert found["omnimuse_request_seconds_sum", ours] == 2.0
    assert found["omnimuse_queue_seconds_sum", ours[:1]] == 0.5
    steps = {edge: found["omnimuse_step_seconds_bucket", (("le", edge), ours[0])] for edge in ("0.0025", "0.05", "0.1")}
    assert steps == {"0.0025": 1, "0.05": 1, "0.1": 2}, "each by itself, no mean of them"
    taken = {"queue": 0.5, "diffuse": 1.0, "text_encoder.forward": 0.5, "other": 3.0}
    taken |= {"vae.decode": 0.75, "forward": 0.125, "vae.encode": 4.0}
    for stage, seconds in taken.items():
        assert found["omnimuse_stage_seconds_sum", (ours[0], ("stage", stage))] == seconds
    assert found["omnimuse_request_peak_bytes_sum", ours[:1]] == 2**30
    assert found["omnimuse_request_needs_bytes_sum", ours[:1]] == 2**26
    assert found["omnimuse_asleep", ()] == 1
    weights = {labels: bytes_ for (name, labels), bytes_ in found.items() if name == "omnimuse_weights_bytes"}
    parts = {("transformer", "whole"): 4000, ("transformer", "block"): 500, ("vae", "whole"): 300}
    assert weights == {(("component", name), ours[0], ("part", part)): size for (name, part), size in parts.items()}
    for state, size in (("worn", 70), ("idle", 30)):
        assert found["omnimuse_adapters_bytes", (ours[0], ("state", state))] == size
    assert found["omnimuse_admission_rejections_total", (("reason", "queue_full"),)] == 1
    assert found["omnimuse_cancelled_total", (("where", "disconnect"),)] == 1
    assert found["omnimuse_worker_restarts_total", (("cause", "hang"),)] == 1
    assert found["omnimuse_workers", (("state", "ready"),)] == 3
    assert found["omnimuse_workers", (("state", "coming"),)] == 1
    assert found["omnimuse_forward_retries_total", ()] == 2
    assert found["omnimuse_jobs_recovered_total", ()] == 3
    assert found["omnimuse_output_pixels_total", ()] == 16384
    assert found["omnimuse_requests_unfinished", ours[:1]] == 5


def test_the_number_of_series_does_not_grow_with_what_comes_in() -> None:
    metrics = Metrics("demo")
    for number in range(300):
        word = f"prompt {number}"
        metrics.ended(word, word, 1.0)
        metrics.rejected(word)
        metrics.cancelled(word)
        metrics.restarted(word)
    found = samples(metrics)
    assert len(found) < 120
    assert all("prompt" not in str(key) for key in found)
    assert found["omnimuse_admission_rejections_total", (("reason", "other"),)] == 300


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics("a"), Metrics("a")
    one.recovered(1)
    assert samples(one)["omnimuse_jobs_recovered_total", ()] == 1
    assert samples(other)["omnimuse_jobs_recovered_total", ()] == 0


# -- the description of the interface ------------------------------------------------------------------------


class Size(BaseModel):
    """A part of another model."""

    width: int
    height: int


class Ask(BaseModel):
    """A body."""

    prompt: str
    size: Size | None = None
    quality: Literal["low", "high"] = "low"


class Made(BaseModel):
    """An answer."""

    id: str


OPERATIONS = [
    Operation("POST", "/v1/things", "Make one.", body=Ask, form=True, responses={200: Made}),
    Operation(
        "GET", "/v1/things", "List.", responses={200: Made}, query={"limit": {"type": "integer", "maximum": 100}}
    ),
    Operation("GET", "/v1/things/{id}/content", "Bytes.", responses={200: "video/mp4", 206: "video/mp4"}),
    Operation("DELETE", "/v1/things/{id}", "Forget.", responses={204: None}),
    Operation("GET", "/livez", "Alive?", responses={200: Made}, open=True),
]


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(part) for part in value.values()))
    if isinstance(value, list):
        return set().union(*(references(part) for part in value))
    return set()


def test_every_operation_is_described_with_its_body_answers_and_errors() -> None:
    found = document(OPERATIONS, "1.2.3")
    assert found["openapi"].startswith("3.1") and found["info"]["version"] == "1.2.3"
    things = found["paths"]["/v1/things"]
    assert set(things) == {"get", "post"}
    forms = {"multipart/form-data", "application/x-www-form-urlencoded"}
    assert set(things["post"]["requestBody"]["content"]) == {"application/json", *forms}
    assert things["get"]["parameters"][0]["schema"]["maximum"] == 100
    content = found["paths"]["/v1/things/{id}/content"]["get"]
    assert content["parameters"][0] == {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    assert set(content["responses"]) == {"200", "206", "default"}
    assert found["paths"]["/livez"]["get"]["security"] == []
    assert set(found["components"]["schemas"]) == {"Ask", "Size", "Made", "Error"}
    codes = found["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert codes == sorted(CODES)


def test_every_reference_leads_somewhere_and_the_document_is_json() -> None:
    found = json.loads(json.dumps(document(OPERATIONS, "1")))
    assert references(found)
    for reference in references(found):
        place = found
        for word in reference.removeprefix("#/").split("/"):
            place = place[word]


def test_a_fuzzer_can_read_the_document() -> None:
    import schemathesis

    schema = schemathesis.openapi.from_dict(document(OPERATIONS, "1"))
    assert len(list(schema.get_all_operations())) == len(OPERATIONS)


def test_two_models_of_one_name_are_refused() -> None:
    other = type("Ask", (BaseModel,), {})
    with pytest.raises(ValueError, match="Ask"):
        document([*OPERATIONS, Operation("PUT", "/v1/other", "x", body=other)], "1")
