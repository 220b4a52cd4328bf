"""What the server says of itself, on stderr: as lines for people, or as one JSON object a line for collectors.

`omnimuse serve` begins it, the admin plane changes its level. What is said of a request or a job is an `Entry`, so that
both forms have the same: an id, a tenant, seconds. What clients choose is quoted, so no client can forge a line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from omnimuse.core.errors import ConfigError

OURS = "omnimuse"
LEVELS = ("debug", "info", "warning", "error")
FORMS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(message)s"
_PLAIN = re.compile(r"[\w./:@+*-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """What became of one request or job: `event` is such as accepted, completed, failed."""

    what: Literal["request", "job"]
    id: str
    event: str
    tenant: str = ""
    seconds: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def write(self, logger: logging.Logger, level: int = logging.INFO) -> None:
        """Log it."""
        if logger.isEnabledFor(level):
            logger.log(level, "%s", self.text, extra={"entry": self})

    @property
    def text(self) -> str:
        """Such as `job video_1 completed after 2.500 s, tenant alice`."""
        after = "" if self.seconds is None else f" after {self.seconds:.3f} s"
        named = {"tenant": self.tenant, **self.more}
        parts = [f", {name} {_quoted(value)}" for name, value in named.items() if value not in ("", None)]
        return f"{self.what} {self.id} {self.event}{after}{''.join(parts)}"

    @property
    def fields(self) -> dict[str, Any]:
        """The same as JSON has it."""
        seconds = None if self.seconds is None else round(self.seconds, 3)
        fields = {"what": self.what, "id": self.id, "event": self.event, "tenant": self.tenant, "seconds": seconds}
        return {name: value for name, value in {**fields, **self.more}.items() if value not in ("", None)}


class JsonLines(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, and the fields of an `Entry`."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by `logging`."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry = vars(record).get("entry")
        if isinstance(entry, Entry):
            said |= entry.fields
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


FORMATTERS = MappingProxyType({"text": logging.Formatter(_TEXT), "json": JsonLines()})


def start_logging(level: str, form: str) -> None:
    """Log to stderr from now on; ConfigError for a level or form that there is none of."""
    if form not in FORMS:
        raise ConfigError(f"--log-format {form!r} is not known; use {' or '.join(FORMS)}")
    checked = check_level(level)
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[form])
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    set_level(checked)


def check_level(level: str) -> str:
    """`level`, if it is one; ConfigError."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is not known; use one of {', '.join(LEVELS)}")
    return level.lower()


def set_level(level: str) -> None:
    """What is logged from now on. Libraries say no more than `info`, whatever ours say."""
    logging.getLogger(OURS).setLevel(level.upper())
    logging.getLogger().setLevel(max(logging.INFO, logging.getLogger(OURS).level))


def level() -> str:
    """What is logged now."""
    return logging.getLevelName(logging.getLogger(OURS).getEffectiveLevel()).lower()


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else repr(text)
