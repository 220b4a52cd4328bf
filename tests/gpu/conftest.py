"""Tests that need an accelerator: every family's tiny checkpoint on it, beside the CPU. Skipped where there is none.

With OMNIMUSE_TESTED_DEVICE=cpu those that ask for engines try themselves, as far as they ask torch for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse.core.config import ModelConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.invariants.conftest import Subject, config
from tests.invariants.conftest import folder as folder
from tests.invariants.conftest import subject as subject

Make = Callable[..., Engine]
TESTED = os.environ.get("OMNIMUSE_TESTED_DEVICE", "cuda")


LAST = ("/test_packed.py", "/test_room.py", "/test_telling.py", "::test_in_bfloat16_")
"""Parts of the names of tests that come behind the others: they take the longest, and those are seen in any case."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    absent = pytest.mark.skip(reason="there is no accelerator here")
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            engines = {"subject", "teller"} & {*item.fixturenames}  # type: ignore[attr-defined]
            if engines and TESTED == "cuda" and not torch.cuda.is_available():
                item.add_marker(absent)
    yield
    if all(item.get_closest_marker("gpu") for item in items):
        items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In as many parts as there are workers, which begin with one each: in every part those that are `LAST` last."""
    late = [item for item in items if any(part in item.nodeid for part in LAST)]
    soon = [item for item in items if item not in late]
    return [item for worker in range(workers) for item in (*soon[worker::workers], *late[worker::workers])]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Without the shorter numbers that matrix units would take for float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def engines(folder: Path) -> Iterator[Make]:
    """Makes engines over a checkpoint on a device (the tested one or "cpu"), in a number format; all are closed."""
    made: list[Engine] = []

    def make(device: str = TESTED, dtype: str = "float32", **parts: object) -> Engine:
        model = ModelConfig(str(folder), dtype=dtype, device=device)
        made.append(start(replace(config(folder, **parts), model=model)))
        return made[-1]

    yield make
    for engine in made:
        assert not engine.runner.forwards.retries, "rows that cannot share a forward are a fault of the family"
        engine.close()


@pytest.fixture
def engine_on(subject: Subject) -> Iterator[Make]:
    """Of the subject."""
    with engines(subject.folder) as make:
        yield make
