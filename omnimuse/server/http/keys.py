"""Who may come in: API keys from a file, kept as hashes, compared in constant time.

Read by the edge for every request that needs a key. The file is looked at again when it changes, so keys are added and
withdrawn without a restart. A key that is gone from the file is gone, whatever else is wrong with it, and where the
file itself is gone, or has no key, nobody comes in after a short while. Keys never appear in a message or a log.
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

from omnimuse.core.errors import ConfigError, reason
from omnimuse.server.errors import ApiError, refusal

logger = logging.getLogger(__name__)

MIN_KEY = 16
"""Characters: a shorter key can be guessed."""
LOOK_AGAIN = 1.0
"""Seconds between looks at the file."""
GRACE = 5.0
"""Seconds for which keys outlive a file that cannot be read or has none: who writes it anew needs a moment."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADVICE = f"a key has at least {MIN_KEY} characters without spaces; make one with: openssl rand -hex 32"

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
        self._lost: float | None = None
        self._bad_lines = 0

    @staticmethod
    def load(path: Path | None, clock: Callable[[], float] = time.monotonic) -> Keys:
        """The keys in `path`: one a line, `key` or `name:key`; empty lines and those that begin with # are skipped.

        Two keys of one name are one tenant, for the time of a change. ConfigError when the file cannot be read, has no
        key, or has one of less than MIN_KEY characters.
        """
        if path is None:
            return Keys(None, [], (0, 0, 0), clock)
        entries, bad, stamp = _read(path)
        if bad:
            raise ConfigError(bad[0])
        if not entries:
            raise ConfigError(f"the API key file {path} has no key; {_ADVICE}")
        return Keys(path, entries, stamp, clock)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None

    @property
    def trouble(self) -> str:
        """What is wrong with the file, for readiness; empty while nothing is."""
        if self._path is not None:
            self._look_again(self._path)
        if self._lost is not None:
            return "the file of API keys cannot be read, or has no key"
        return f"{self._bad_lines} lines of the file of API keys are no keys" if self._bad_lines else ""

    def tenant(self, authorization: str | None) -> str:
        """Whose key an `Authorization: Bearer KEY` header has; ApiError 401 for none or a wrong one."""
        if self._path is None:
            return ""
        self._look_again(self._path)
        if self._lost is not None and self._clock() - self._lost >= GRACE:
            raise refusal("keys_unreadable", "the server cannot read its API keys; tell who runs it")
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
        """Read the file if it changed. What is no key in it is passed over; without any, the last ones have GRACE."""
        if self._clock() - self._looked < LOOK_AGAIN:
            return
        self._looked = self._clock()
        try:
            if self._lost is None and _stamp(os.stat(path)) == self._stamp:
                return
            entries, bad, self._stamp = _read(path)
        except (OSError, ConfigError) as error:
            self._lose(str(error))
            return
        for told in bad:
            logger.error("passed over: %s", told)
        self._bad_lines = len(bad)
        if not entries:
            self._lose(f"the API key file {path} has no key")
            return
        self._entries, self._lost = entries, None
        logger.info("the API keys were read again: %d keys", len(entries))

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = self._clock()
            logger.error("%s; in %g s nobody comes in any more", why, GRACE)


def _read(path: Path) -> tuple[list[Entry], list[str], Stamp]:
    """The keys of a file, what is to be said of lines that are none, and which version of the file it is."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            status = os.fstat(file.fileno())
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the API key file {path} cannot be read: {reason(error)}; give a text file, one key a line"
        ) from None
    if status.st_mode & 0o077:
        logger.warning("the API key file %s can be read by others; use: chmod 600 %s", path, path)
    entries: list[Entry] = []
    bad: list[str] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            entry = _entry(line)
            if entry is None:
                bad.append(f"line {number} of {path}: {_ADVICE}")
            else:
                entries.append(entry)
    return entries, bad, _stamp(status)


def _entry(line: str) -> Entry | None:
    name, colon, key = line.partition(":")
    if not colon or _NAME.fullmatch(name) is None:
        name, key = "", line
    key = key.strip()
    if len(key) < MIN_KEY or any(character.isspace() for character in key):
        return None
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
