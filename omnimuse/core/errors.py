"""The one tree of errors that omnimuse raises on purpose.

Everybody raises these; the command line, the server and the worker loop catch them. A message says what is wrong,
the value received, what is allowed and what to do; `reason` says why the system refused. Nothing of ours is imported.
"""

from __future__ import annotations

import errno
import json

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says where a disk has no room left, or none for us."""


class OmnimuseError(Exception):
    """Base of every error that omnimuse raises on purpose."""


class ConfigError(OmnimuseError):
    """A choice made when the engine starts cannot be honoured."""


class UnsupportedError(ConfigError):
    """A request needs what a choice made when the engine started cannot do; others may be served."""


class RequestError(OmnimuseError):
    """A request cannot be served as asked; `param` names the field that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestCancelled(RequestError):
    """The request was cancelled, or its deadline passed, before it finished."""


class DeadlineError(RequestCancelled):
    """The deadline of the request passed, or cannot be met."""


class CapacityError(OmnimuseError):
    """The engine is full; the request was refused before any work. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdaptersFullError(CapacityError):
    """Adapters that requests in progress wear have the room for those that were asked for."""


class ModelError(OmnimuseError):
    """A checkpoint is missing, unreadable, incomplete or not supported."""


class EngineDeadError(OmnimuseError):
    """The engine has died; start a new one."""


class EngineClosedError(EngineDeadError):
    """The engine is closed, or was while the request waited or ran."""


class WorkerLostError(EngineDeadError):
    """The process that worked on a request died or hung, and its work could not be repeated."""


class PoisonError(WorkerLostError):
    """A request killed the process that worked on it, twice; it is not tried again."""


class NumericalError(OmnimuseError):
    """The model computed values that are not numbers (NaN) or infinite; the same request would do so again."""


class MemoryShortageError(OmnimuseError, MemoryError):
    """There was not enough memory for a request; a smaller one may find enough."""


class StorageError(OmnimuseError):
    """What was to be kept could not be written: the disk is full or refuses."""


def plain(text: str) -> str:
    """`text` with what a terminal would obey written out, such as `\\x1b`: names come from strangers' files."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def refused(error: OSError, path: object) -> OSError:
    """`error` of the system, said of `path`: what was written first may have another name, or none."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def reason(error: BaseException) -> str:
    """Why, for a message that has the file's name: of an error of the system its words alone, of what is no text or no
    JSON where, of others their text.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is no UTF-8: byte {error.start} cannot be read"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
