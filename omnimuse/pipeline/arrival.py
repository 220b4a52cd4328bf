"""Tensors on their way from the compute device to main memory, for which the host does not wait.

Stages send finished pieces with `Context.send`, which is `send` but for tests of other devices, and collect them in a
`Collected`. Knows no model and no stage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Arrival(Protocol):
    """A tensor that has been sent to main memory."""

    def here(self) -> bool:
        """Whether it has arrived."""
        ...

    def wait(self) -> Tensor:
        """The tensor in main memory, once it is there."""
        ...


Send = Callable[[Tensor], Arrival]


def send(tensor: Tensor) -> Arrival:
    """Begin to copy `tensor` to main memory; one that lies there has arrived. It may be freed, not written to."""
    if tensor.device.type == "cpu":
        return Here(tensor)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return Pinned(host, torch.accelerator.current_stream(tensor.device).record_event())


@dataclass(frozen=True)
class Here:
    """A tensor that was in main memory all along."""

    tensor: Tensor

    def here(self) -> bool:
        return True

    def wait(self) -> Tensor:
        return self.tensor


@dataclass(frozen=True)
class Pinned:
    """Pinned memory that a device is filling, and the event at which it is full."""

    tensor: Tensor
    full: torch.Event

    def here(self) -> bool:
        return self.full.query()

    def wait(self) -> Tensor:
        self.full.synchronize()
        return self.tensor


class Collected:
    """A float32 tensor in main memory that is filled with pieces which arrive in the order they were sent.

    There is no memory for it before a piece arrives: those that come one behind the other along the first dimension,
    as whole frames do, are kept as they are and joined at the end, others are put into their places. It is no part of
    what is moved when its state is.
    """

    def __init__(self, shape: Sequence[int], send: Send = send) -> None:
        self.shape = tuple(shape)
        self._tensor: Tensor | None = None
        self._row: list[Tensor] = []
        self._send = send
        self._coming: deque[tuple[tuple[slice, ...], Arrival]] = deque()

    @property
    def tensor(self) -> Tensor:
        """What has arrived, in its places."""
        if self._tensor is None:
            self._tensor = torch.empty(self.shape, dtype=torch.float32, device="cpu")
            if self._row:
                torch.cat(self._row, out=self._tensor[: self._length])
                self._row.clear()
        return self._tensor

    @property
    def _length(self) -> int:
        """Of the row, along the first dimension."""
        return sum(map(len, self._row))

    def put(self, place: tuple[slice, ...], piece: Tensor) -> None:
        """Send `piece`, which is nobody else's, to `place`, and put in place what has arrived of those before it."""
        self._coming.append((place, self._send(piece)))
        while self._coming and self._coming[0][1].here():
            self._take()

    def finished(self) -> Tensor:
        """The whole tensor, once every piece has arrived."""
        while self._coming:
            self._take()
        if self._tensor is None and len(self._row) == 1 and self._length == self.shape[0]:
            [self._tensor] = self._row
            self._row.clear()
        return self.tensor

    def _take(self) -> None:
        place, arrival = self._coming.popleft()
        piece = arrival.wait()
        if self._tensor is None and self._is_next(place, piece):
            self._row.append(piece)
        else:
            self.tensor[place] = piece

    def _is_next(self, place: tuple[slice, ...], piece: Tensor) -> bool:
        """Whether `piece` comes right behind the row, is as wide, and its memory holds nothing else and is not pinned,
        of which there is little.
        """
        alone = piece.untyped_storage().nbytes() == piece.nbytes and piece.is_contiguous()
        wide = piece.shape[1:] == self.shape[1:] and piece.dtype == torch.float32
        return wide and alone and not piece.is_pinned() and (place[0].start or 0) == self._length
