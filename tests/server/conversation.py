"""A conversation at /v1/realtime by the official client, for tests, and what Python gives for the same messages."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai

from omnimuse import Omni
from omnimuse.core.request import Recording
from omnimuse.media.sound import at_speed
from tests.checkpoints.wishes import chord
from tests.server.whole_server import WholeServer

GREEDY: dict[str, Any] = {"temperature": 0, "seed": 4, "max_output_tokens": 10}
SAID = chord(24_000, 0.5, 1)


@asynccontextmanager
async def session(server: WholeServer, **settings: Any) -> AsyncIterator[Any]:
    """A connection of the official client with these settings, greeted; the session's events have been heard."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        async with client.realtime.connect(model="default") as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.session.update(session={"type": "realtime", **GREEDY, **settings})
            assert (await connection.recv()).type == "session.updated"
            yield connection


async def until(connection: Any, last: str) -> list[Any]:
    """The events up to one of type `last`."""
    found = [await connection.recv()]
    while found[-1].type != last:
        assert len(found) < 500
        found.append(await connection.recv())
    return found


async def hear(connection: Any, sound: Recording = SAID) -> list[Any]:
    """Say a sound in two pieces; the events of the item that it becomes."""
    for piece in (sound.pcm[:1000], sound.pcm[1000:]):
        await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
    await connection.input_audio_buffer.commit()
    return await until(connection, "conversation.item.done")


async def say(connection: Any, *content: dict[str, Any]) -> list[Any]:
    """Make an item; its events."""
    await connection.conversation.item.create(item={"type": "message", "role": "user", "content": list(content)})
    return await until(connection, "conversation.item.done")


async def answered(connection: Any, **how: Any) -> tuple[list[Any], str, bytes]:
    """Ask for a response, made as `how` says: its events, its words and its sound."""
    await connection.response.create(response=how)
    events = await until(connection, "response.done")
    words = "".join(e.delta for e in events if e.type.endswith(("transcript.delta", "text.delta")))
    sound = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
    return events, words, sound


def whole(omni: Omni, messages: list[dict[str, Any]], *media: str, speed: float = 1.0) -> tuple[str, bytes]:
    """What Python gives: the text, and the sound as samples of 16 bits, if any, so many times as fast."""
    asked = {"temperature": 0, "seed": 4, "max_tokens": 10}
    asked |= {"modalities": media} if media else {}
    asked |= {"voice": "chelsie"} if "audio" in media else {}
    [result] = omni.generate([messages], asked, progress=False)
    sounds = [at_speed(part.data, speed) for parts in result.parts for part in parts if part.medium == "audio"]
    pcm = b"".join((sound.samples[0].clip(-1, 1) * 32767).round().astype("<i2").tobytes() for sound in sounds)
    return result.text, pcm
