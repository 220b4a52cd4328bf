"""Our end of a socket to a process that may go at any time."""

from __future__ import annotations

import asyncio
import socket

from omnimuse.media.channel import LINE, Channel


def test_what_was_said_before_the_other_end_went_is_read_whatever_writing_meets() -> None:
    async def work() -> tuple[bytes, bytes | None, bytes | None]:
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        await channel.write(b"a question that nobody reads")
        theirs.sendall(b"answer\n" + bytes(100_000))
        theirs.close()
        await channel.write(bytes(2**20))
        await channel.write(b"more")
        try:
            return await channel.line(), await channel.exactly(100_000), await channel.exactly(1)
        finally:
            channel.close()

    line, content, beyond = asyncio.run(work())
    assert line == b"answer\n" and content == bytes(100_000) and beyond is None


def test_a_line_without_an_end_is_not_read_for_ever() -> None:
    async def work() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = Channel(ours)
            theirs.sendall(bytes(3 * LINE))
            try:
                return await channel.line()
            finally:
                channel.close()

    assert LINE <= len(asyncio.run(work())) <= 2 * LINE
