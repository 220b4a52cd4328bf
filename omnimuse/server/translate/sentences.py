"""A text that comes in pieces, cut into what can be said: a sentence is whole once something follows its end.

Plain functions of text, in a time that grows with its length. What ends a sentence is known for Latin, Chinese,
Japanese and Indic scripts; what has no word in it (a row of dots) is left out.
"""

from __future__ import annotations

import re
from typing import Literal

from omnimuse.server.errors import refusal

Cut = Literal["none", "sentence", "clause"]
CUTS: tuple[Cut, ...] = ("none", "sentence", "clause")
_CLOSING = "\"'”’»)\\]」』）】"
_ENDS = {
    "sentence": re.compile(rf"[.!?…]++[{_CLOSING}]*+(?=\s)|[。！？।॥]++[{_CLOSING}]*+(?=.)|\n++", re.DOTALL),
    "clause": re.compile(rf"[.!?…,;:]++[{_CLOSING}]*+(?=\s)|[。！？।॥，；：、]++[{_CLOSING}]*+(?=.)|\n++", re.DOTALL),
}
_OPEN = ".!?…,;:。！？।॥，；：、\"'”’»)]」』）】"
"""What may be the beginning of an end: it is looked at again once more has come."""


_LOOK_BACK = 64
"""Characters at the end of a text that may be such a beginning."""


class Sentences:
    """The text so far that has not been given away. With `none` all of it is one piece."""

    def __init__(self, cut: Cut = "sentence") -> None:
        self._end = _ENDS.get(cut)
        self._text, self._seen = "", 0

    def __len__(self) -> int:
        """The characters that are here."""
        return len(self._text)

    def add(self, text: str) -> list[str]:
        """What is whole now."""
        self._text += text
        if self._end is None:
            return []
        found, begin = list[str](), 0
        for end in self._end.finditer(self._text, self._seen):
            found.append(_said(self._text[begin : end.end()]))
            begin = end.end()
        self._text = self._text[begin:]
        open_ = self._text[-_LOOK_BACK:]
        self._seen = len(self._text) - len(open_) + len(open_.rstrip(_OPEN))
        return [said for said in found if said]

    def rest(self) -> str:
        """What is left, though nothing follows it; empty if there is no word in it."""
        said, self._text, self._seen = _said(self._text), "", 0
        return said


def _said(text: str) -> str:
    return text.strip() if any(map(str.isalnum, text)) else ""


def cut_of(value: object) -> Cut:
    """How a text is cut, by the word of a client; ApiError 400 for another one."""
    for cut in CUTS:
        if value == cut:
            return cut
    raise refusal("invalid_value", f"split_granularity is one of {', '.join(CUTS)}", "split_granularity")
