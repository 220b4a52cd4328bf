"""The bodies of /v1/chat/completions with pictures in the answer.

OpenAI's shapes have no place for them: `message.images` (and `delta.images`) is where gateways put them. They can be
content parts instead, as clients of vLLM-Omni expect, or Markdown, which clients of text show.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

ChatRequest = request_model("ChatRequest", "chat")


class ImageUrl(BaseModel):
    """A picture as a data: URL."""

    url: str


class ImagePart(BaseModel):
    """One picture of a message; with a `step`, a look at one that is not finished, after so many steps."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl
    index: int
    seed: int
    step: int | None = None


class TextPart(BaseModel):
    """A text among the pictures of a message."""

    type: Literal["text"] = "text"
    text: str


class Message(BaseModel):
    """What the model says: pictures, and what it thought of before. `role` is absent in later deltas of a stream."""

    role: Literal["assistant"] | None = None
    content: str | list[TextPart | ImagePart] | None = None
    images: list[ImagePart] | None = None


class Choice(BaseModel):
    """One answer of a completion."""

    index: int
    message: Message
    finish_reason: Literal["stop"] = "stop"


class ChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Message
    finish_reason: Literal["stop"] | None = None


class ChatUsage(BaseModel):
    """Text tokens that were read of the prompts, and image tokens of the answer, one for each patch that the network
    sees.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Within):
    """The answer. `timings` are seconds by stage; `warnings` say what of the request had no part in the picture."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    timings: dict[str, float]
    warnings: list[str] | None = None


class ChatChunk(Within):
    """A piece of a streamed answer; the last has the usage and no choices, where it was asked for, and the timings."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    timings: dict[str, float] | None = None
    warnings: list[str] | None = None
