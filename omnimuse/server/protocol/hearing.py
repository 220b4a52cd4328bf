"""The bodies of /v1/audio/transcriptions and /v1/audio/translations: OpenAI's."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

HearingRequest = request_model("HearingRequest", "hearing")


class HeardUsage(BaseModel):
    """Tokens that were read, of the sound and of what was asked, and those that were written."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Transcription(Within):
    """What the model heard; `timings` are seconds by stage, where the request has `block_timings`."""

    text: str
    usage: HeardUsage
    timings: dict[str, float] | None = None


class TranscriptDeltaEvent(BaseModel):
    """A piece of the text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TranscriptDoneEvent(Transcription):
    """The last event, with the whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
