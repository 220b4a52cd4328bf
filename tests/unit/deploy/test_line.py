"""What is queued in a worker goes to the front as few messages: in its order, each bounded in length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import zmq

from omnimuse.deploy.line import TOGETHER, Line, listen
from omnimuse.deploy.wire import Beat, Spelt, read_report

BEAT = Beat(ticks=0, busy=False, memory=0)
PATIENCE = 10_000  # milliseconds


@pytest.fixture
def front() -> Iterator[zmq.Socket[Any]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.RCVTIMEO, PATIENCE)
        socket.setsockopt(zmq.LINGER, 0)
        yield socket


def told(front: zmq.Socket[Any], texts: list[str]) -> list[list[bytes]]:
    """The messages in which a line tells `texts` that were queued before it talked, without its beats."""
    address, _ = listen(front, "tcp://127.0.0.1:*", secret=False)
    line = Line(address)
    for number, text in enumerate(texts):
        line.send(Spelt("one", 0, number, text))
    talking = Thread(target=line.talk, args=(lambda command: None, lambda: BEAT, 60.0))
    talking.start()
    found: list[list[bytes]] = []
    while sum(map(len, found)) < len(texts) + 1:
        found.append(front.recv_multipart())
    line.end()
    talking.join()
    line.close()
    return found


def starts(messages: list[list[bytes]]) -> list[int]:
    reports = [read_report(part) for message in messages for part in message]
    return [report.start for report in reports if isinstance(report, Spelt)]


def test_what_is_queued_goes_as_one_message(front: zmq.Socket[Any]) -> None:
    messages = told(front, ["word"] * 100)
    assert len(messages) == 1
    assert starts(messages) == list(range(100))


def test_one_message_is_bounded_in_length_and_a_longer_part_goes_by_itself(front: zmq.Socket[Any]) -> None:
    long, half = "a" * (2 * TOGETHER), "b" * (TOGETHER // 2)
    messages = told(front, ["short", long, "short", half, half, half])
    assert starts(messages) == list(range(6))
    assert all(len(message) == 1 or sum(map(len, message)) <= TOGETHER for message in messages)
    assert [len(message) for message in messages] == [1, 1, 2, 1, 2]


def test_what_is_queued_before_the_bell_is_heard_rings_it_once(front: zmq.Socket[Any]) -> None:
    line = Line(listen(front, "tcp://127.0.0.1:*", secret=False)[0])
    for number in range(3):
        line.send(Spelt("one", 0, number, "word"))
    assert os.read(line._bell, 100) == b"\0"
    line.close()
