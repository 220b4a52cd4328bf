"""The worker's end of the socket to the front process, and how that listens for it.

Any thread of a worker may `send`; the main thread alone touches ZeroMQ. It also beats: the front process takes a
worker that says nothing for long for dead. No torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from omnimuse.deploy.wire import MAX_MESSAGE, Beat, Command, Message, encode, read_command

TOGETHER = 2**18
"""Bytes that are sent as one message of many parts; a longer one goes by itself."""
_LAST_WORDS = 2000  # milliseconds that messages may take to leave when the process ends


def listen(socket: zmq.Socket[Any], address: str, secret: bool) -> tuple[str, str]:
    """Have the front's `socket` bound to `address`: where it is, and the key without which nobody is heard there."""
    key = b""
    if secret:
        key, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_server = True
    socket.bind(address)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT), key.decode()


class Line:
    """A socket connected to `address`, and the queue of what is to be sent.

    With the front's `key`, who talks and what is said are nobody else's (CurveZMQ): so it is on other machines.
    """

    def __init__(self, address: str, key: str = "") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if key:
            self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
            self._socket.curve_serverkey = key.encode()
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        self._socket.setsockopt(zmq.LINGER, _LAST_WORDS)
        self._socket.connect(address)
        self._queue: SimpleQueue[Message] = SimpleQueue()
        self._bell, self._push = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._push, False)
        self._rung = self._ended = False

    def send(self, message: Message) -> None:
        """Have `message` sent; from any thread, never blocks."""
        self._queue.put(message)
        self._ring()

    def end(self) -> None:
        """Make `talk` return once everything is sent; from any thread."""
        self._ended = True
        self._ring()

    def talk(self, obey: Callable[[Command], None], beat: Callable[[], Beat], period: float) -> None:
        """Send, beat every `period` seconds and obey, until `end`. Called by the main thread."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        due = time.monotonic()
        while not self._ended:
            if time.monotonic() >= due:
                self._queue.put(beat())
                due = time.monotonic() + period
            self._flush()
            ready = dict(poller.poll(max(0, int(1000 * (due - time.monotonic())) + 1)))
            if self._bell in ready:
                os.read(self._bell, 4096)
                self._rung = False  # before what is queued is looked at
            if self._socket in ready:
                obey(read_command(self._socket.recv()))

    def close(self) -> None:
        """Send what is left and give everything back."""
        self._flush()
        self._socket.close()
        self._context.term()
        os.close(self._bell)
        os.close(self._push)

    def _flush(self) -> None:
        """Send what is there as messages of many parts: waiting for one takes the front longer than reading a part."""
        parts: list[bytes] = []
        length = 0
        while True:
            try:
                payload = encode(self._queue.get_nowait())
            except Empty:
                break
            if parts and length + len(payload) > TOGETHER:
                self._socket.send_multipart(parts)
                parts, length = [], 0
            parts.append(payload)
            length += len(payload)
        if parts:
            self._socket.send_multipart(parts)

    def _ring(self) -> None:
        """Wake `talk`. Every ring hands it the interpreter: rung for each message, it would send each by itself."""
        if self._rung:
            return
        self._rung = True
        try:
            os.write(self._push, b"\0")
        except BlockingIOError:  # the bell rings already
            return
