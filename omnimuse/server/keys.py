"""Who may come in: API keys from a file, kept as hashes, compared in constant time.

Read by the edge for every request that needs a key. The file is looked at again when it changes, so keys are added and
withdrawn without a restart. Keys never appear in a message or a log.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.server.errors import ApiError, refusal

logger = logging.getLogger(__name__)

MIN_KEY = 16
"""Characters: a shorter key can be guessed."""
LOOK_AGAIN = 1.0
"""Seconds between looks at the file."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Entry = tuple[bytes, str]
"""The SHA-256 of a key and the tenant it stands for."""
Stamp = tuple[int, int, int]
"""What tells one version of the file from another: inode, size, time of change in nanoseconds."""


class Keys:
    """The keys of one file; without a file everybody may come in, as tenant ""."""

    def __init__(self, path: Path | None, entries: list[Entry], stamp: Stamp, clock: Callable[[], float]) -> None:
        """`load` is the way in."""
        self._path, self._entries, self._stamp, self._clock = path, entries, stamp, clock
        self._looked = clock()

    @staticmethod
    def load(path: Path | None, clock: Callable[[], float] = time.monotonic) -> Keys:
        """The keys in `path`: one a line, `key` or `name:key`; empty lines and those that begin with # are skipped.

        Two keys of one name are one tenant, for the time of a change. ConfigError when the file cannot be read, has no
        key, or has one of less than MIN_KEY characters.
        """
        if path is None:
            return Keys(None, [], (0, 0, 0), clock)
        entries, stamp = _read(path)
        return Keys(path, entries, stamp, clock)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None

    def tenant(self, authorization: str | None) -> str:
        """Whose key an `Authorization: Bearer KEY` header has; ApiError 401 for none or a wrong one."""
        if self._path is None:
            return ""
        self._look_again(self._path)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("this server needs an API key; send it as `Authorization: Bearer KEY`")
        digest, found = _hash(key.strip()), None
        for known, tenant in self._entries:  # all of them: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise _unauthorized("the API key is not known here; check it with who runs the server")
        return found

    def _look_again(self, path: Path) -> None:
        """Read the file if it changed; a file that cannot be used leaves the keys as they are."""
        if self._clock() - self._looked < LOOK_AGAIN:
            return
        self._looked = self._clock()
        try:
            if _stamp(os.stat(path)) != self._stamp:
                self._entries, self._stamp = _read(path)
                logger.info("the API keys were read again: %d keys", len(self._entries))
        except (OSError, ConfigError) as error:
            logger.error("the API keys stay as they were: %s", error)


def _read(path: Path) -> tuple[list[Entry], Stamp]:
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the API key file {path} cannot be read: {error}; give a text file, one key a line"
        ) from None
    if status.st_mode & 0o077:
        logger.warning("the API key file %s can be read by others; use: chmod 600 %s", path, path)
    entries = [
        _entry(line.strip(), number, path)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not entries:
        raise ConfigError(
            f"the API key file {path} has no key; write one a line, for example from: openssl rand -hex 32"
        )
    return entries, _stamp(status)


def _entry(line: str, number: int, path: Path) -> Entry:
    name, colon, key = line.partition(":")
    if not colon or _NAME.fullmatch(name) is None:
        name, key = "", line
    key = key.strip()
    if len(key) < MIN_KEY or any(character.isspace() for character in key):
        what = f"at least {MIN_KEY} characters without spaces"
        raise ConfigError(f"line {number} of {path}: a key has {what}; make one with: openssl rand -hex 32")
    digest = _hash(key)
    return digest, name or f"key-{digest.hex()[:12]}"


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unauthorized(message: str) -> ApiError:
    error = refusal("invalid_api_key", message)
    error.headers["www-authenticate"] = "Bearer"
    return error
