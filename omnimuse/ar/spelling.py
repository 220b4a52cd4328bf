"""Tokens to text while they come: whole characters only, and nothing that a stop text may yet take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"
"""What a tokenizer makes of the first bytes of a character."""


class Spelling:
    """The text of tokens that come one by one; `text` is what of it is sure, `stopped` whether a stop text has come.

    Where nobody listens and no text stops it, nothing is sure before the end.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], *, heard: bool) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._heard = heard or bool(stop)
        self._ids: list[int] = []
        self._known = self._spelt = (
            0  # the tokens before them are told; those between are looked at again with what comes
        )
        self._held = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """One more token; what is sure of the text beyond what was told."""
        self._ids.append(token)
        if not self._heard:
            return ""
        before, now = self._before_and_now()
        if len(now) <= len(before) or now.endswith(HALF):
            return ""
        self._known, self._spelt = self._spelt, len(self._ids)
        return self._tell(now[len(before) :])

    def end(self) -> str:
        """Nothing more comes; what was held back."""
        if self.stopped:
            return ""
        before, now = self._before_and_now()
        rest = self._tell(now[len(before) :]) + ("" if self.stopped else self._held)
        self.text += "" if self.stopped else self._held
        self._held = ""
        return rest

    def _before_and_now(self) -> tuple[str, str]:
        """The text behind what is told, without the tokens that were looked at since, and with them."""
        before = self._ids[self._known : self._spelt]
        return self._decode(before) if before else "", self._decode(self._ids[self._known :])

    def _tell(self, piece: str) -> str:
        self._held += piece
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        sure = min(places) if places else len(self._held) - self._doubtful()
        told, self._held = self._held[:sure], "" if places else self._held[sure:]
        self.stopped = bool(places)
        self.text += told
        return told

    def _doubtful(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
