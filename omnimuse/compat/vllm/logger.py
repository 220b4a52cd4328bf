"""`vllm.logger`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from omnimuse.compat.contract.names import no_name


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A logger that can say a thing once."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})
        self._told: set[tuple[Any, ...]] = set()

    def debug_once(self, message: str, *words: object) -> None:
        """Say it the first time."""
        self._once(self.debug, message, *words)

    def info_once(self, message: str, *words: object) -> None:
        """Say it the first time."""
        self._once(self.info, message, *words)

    def warning_once(self, message: str, *words: object) -> None:
        """Say it the first time."""
        self._once(self.warning, message, *words)

    def _once(self, say: Callable[..., None], message: str, *words: object) -> None:
        if (message, *map(str, words)) not in self._told:
            self._told.add((message, *map(str, words)))
            say(message, *words)


def init_logger(name: str) -> Logger:
    """The logger `name` of Python's logging."""
    return Logger(name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
