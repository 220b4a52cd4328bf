"""What every test may rely on: no network, no colours, and the tiny checkpoints of `tests/checkpoints`."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_COLOR"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.once",
    "tests.garbage",
    "tests.server.browser",
    "tests.checkpoints.fixtures",
    "tests.turns",
    "tests.order",
    "tests.shows",
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def logging_as_it_is_at_first() -> None:
    """What a test, or a library that it imports, changed of logging is no matter of the next one.

    Only what differs is set: setting a level asks all loggers that there are to forget what they know, and there are
    thousands.
    """
    if logging.root.manager.disable != logging.NOTSET:
        logging.disable(logging.NOTSET)
    for handler in logging.root.handlers:
        handler.setLevel(logging.NOTSET)  # cache-dit takes those of the root for its own
    ours = [(name, each) for name, each in logging.root.manager.loggerDict.items() if name.startswith("omnimuse")]
    for name, logger in (("", logging.root), *ours):
        if isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            if logger.level != (level := logging.NOTSET if name else logging.WARNING):
                logger.setLevel(level)
