"""Answers that ask for tools: what of a text is told as such, and what as calls. For `talk.py` and `realtime.py`."""

from __future__ import annotations

from collections.abc import Sequence

from omnimuse.core.calls import LOST, Call, Splitter
from omnimuse.server.orders.order import Order
from omnimuse.server.protocol import talk as protocol


class Calling:
    """The answers of an order, of which pieces come in turn: where tools were given, calls are taken out."""

    def __init__(self, order: Order) -> None:
        self._order, self._taking = order, dict[int, Splitter]()

    def new(self, index: int, text: str) -> Sequence[str | Call]:
        """What is to be told now that `text` follows in answer `index`."""
        if not self._order.request.tools:
            return [text] if text else []
        return self._of(index).add(text)

    def end(self, index: int) -> Sequence[str | Call]:
        """What is to be told when nothing follows."""
        return self._of(index).end() if self._order.request.tools else []

    def whole(self, index: int, text: str) -> tuple[str, Sequence[Call]]:
        """An answer that is there as a whole: what it says, and its calls."""
        return (self._of(index).rest(text) if self._order.request.tools else text), self.calls(index)

    def calls(self, index: int) -> Sequence[Call]:
        """The calls of answer `index` so far."""
        return self._taking[index].calls if index in self._taking else ()

    def reason(self, index: int, reason: protocol.Reason) -> protocol.Reason:
        """Why answer `index` ended: for its calls, where it did so by itself."""
        return "tool_calls" if reason == "stop" and self.calls(index) else reason

    @property
    def warnings(self) -> list[str]:
        """What a person should know of the calls."""
        return [LOST] if any(taking.lost for taking in self._taking.values()) else []

    def _of(self, index: int) -> Splitter:
        if index not in self._taking:
            most = 1 if self._order.wanted.talk.single else None
            self._taking[index] = Splitter(f"{self._order.request.id}-{index}", most)
            self._taking[index].add(self._order.request.begun)
        return self._taking[index]
