"""The bodies of the speech endpoints, in the shapes of OpenAI's."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

SpeechRequest = request_model("SpeechRequest", "speech")


class SpeechDeltaEvent(BaseModel):
    """A piece of the sound that is finished, base64 of the bytes of the file that was asked for."""

    type: Literal["speech.audio.delta"] = "speech.audio.delta"
    audio: str


class SpeechUsage(BaseModel):
    """Tokens that were read of the text, and frames that were said."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechDoneEvent(Within):
    """The last event; `timings` are seconds by stage, where the request has `block_timings`."""

    type: Literal["speech.audio.done"] = "speech.audio.done"
    usage: SpeechUsage
    timings: dict[str, float] | None = None
