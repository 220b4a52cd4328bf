"""What every test may rely on: no network, no colours, and the tiny checkpoints of `tests/checkpoints`."""

from __future__ import annotations

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_COLOR"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.once", "tests.checkpoints.fixtures", "tests.turns", "tests.order", "tests.shows"]


def pytest_collection_finish() -> None:
    """What is there when tests begin stays: a collection of garbage, half a second else, need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """At the end everything may go; libraries complain of what does not."""
    gc.unfreeze()
