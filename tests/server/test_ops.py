"""The operators' files agree with the server: every measurement in them exists, every option in them is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from omnimuse.cli.app import parser_of
from omnimuse.cli.layered import options_of
from omnimuse.server.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
NAME = re.compile(r"\bomnimuse_\w+")
LABELLED = re.compile(r"(omnimuse_\w+)\{([^}]*)\}")


def measured() -> dict[str, set[str]]:
    """Every series that `/metrics` can have, and its labels."""
    metrics = Metrics("demo")
    metrics.ended("text-to-image", "completed", 1.0)
    metrics.drawn(1, {"queue": 0.1, "denoise": 1.0}, (1.0,), memory=1)
    metrics.wrote(3, 1, 2)
    metrics.rejected("queue_full")
    metrics.cancelled("queued")
    metrics.restarted("exit")
    metrics.staffed(1, 0)
    metrics.weigh({"transformer": (2, 1)})
    metrics.wear(2, 1)
    metrics.failed("tidying up")
    metrics.level(1, keys_stale=True)
    text, _ = metrics.render()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def dashboard() -> dict[str, Any]:
    return json.loads((OPS / "grafana/dashboard.json").read_text())


def expressions() -> list[str]:
    """What the dashboard and the alerts ask Prometheus for."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load((OPS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    return [*panels, *(rule["expr"] for rule in rules)]


def test_every_measurement_that_is_watched_exists_with_its_labels() -> None:
    known = measured()
    assert len(expressions()) > 20
    for expression in expressions():
        for name in NAME.findall(expression):
            assert name in known, f"{name} in {expression}"
        for name, labels in LABELLED.findall(expression):
            assert set(re.findall(r"(\w+)[!=]", labels)) <= known[name], expression
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            [*names] = NAME.findall(expression)
            assert set(labels.split(", ")) <= set().union(*(known[name] for name in names)), expression


def test_every_measurement_is_watched_somewhere() -> None:
    """A number that nobody looks at is either missing here or not needed there."""
    watched = {name for expression in expressions() for name in NAME.findall(expression)}
    series = {name for name in measured() if not name.endswith(("_sum", "_count", "_created"))}
    assert series - watched == set()


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for group in yaml.safe_load((OPS / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "what_to_do"}, rule["alert"]
            assert rule["labels"]["severity"] in ("page", "warning")


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml"])
def test_every_option_that_a_container_sets_is_one(file: str) -> None:
    known = {f"OMNIMUSE_{option.variable}" for option in options_of(parser_of("serve")).values()}
    text = "\n".join(line for line in (OPS / file).read_text().splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\bOMNIMUSE_[A-Z_]+", text)) - known == set()


def test_the_image_has_every_extra_that_a_server_uses_and_copies_what_is_there() -> None:
    text = (OPS / "Dockerfile").read_text()
    [extras] = re.findall(r'"\.\[([a-z,]+)\]"', text)
    declared = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    assert set(extras.split(",")) <= declared
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M) for name in line.split()]
    allowed = (ROOT / ".dockerignore").read_text()
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in allowed


def test_the_files_of_the_composition_are_there() -> None:
    services = yaml.safe_load((OPS / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    for place in mounted:
        if place.startswith("./") and place != "./keys.txt":  # made by whoever runs it
            assert (OPS / place).exists(), place
    for file in OPS.rglob("*.yaml"):
        assert yaml.safe_load(file.read_text()), file
