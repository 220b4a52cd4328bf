"""The bodies of /v1/chat/completions and /v1/completions of a model that writes: OpenAI's."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.chat import ImagePart
from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

TalkRequest = request_model("TalkRequest", "talk")
CompletionRequest = request_model("CompletionRequest", "completion")
Reason = Literal["stop", "length", "tool_calls"]


class Sound(BaseModel):
    """A spoken answer, or a piece of it: `data` in base64; the last piece only says when it is over."""

    id: str
    data: str | None = None
    transcript: str | None = None
    expires_at: int | None = None


class Function(BaseModel):
    """The function that is to be called, and its arguments: an object as JSON, or a piece of that."""

    name: str | None = None
    arguments: str = ""


class ToolCall(BaseModel):
    """A call that the model asks for. In a stream `index` says which one, and only its first piece has more."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: Function


class Said(BaseModel):
    """What the model says, or a piece of it, the picture that it asks for, and the calls; `role` is in the first piece
    only.
    """

    role: Literal["assistant"] | None = None
    content: str | None = None
    audio: Sound | None = None
    images: list[ImagePart] | None = None
    tool_calls: list[ToolCall] | None = None


class Answer(BaseModel):
    """One answer of a chat: the model came to a `stop`, perhaps with `tool_calls`, or may not write more (`length`)."""

    index: int
    message: Said
    finish_reason: Reason


class Piece(BaseModel):
    """A piece of one answer of a chat; the last one says why it is that."""

    index: int
    delta: Said
    finish_reason: Reason | None = None


class Continuation(BaseModel):
    """One text that goes on from the prompt, or a piece of it."""

    index: int
    text: str
    finish_reason: Reason | None = None


class PromptDetails(BaseModel):
    """How many of the prompt's first tokens had been read before, for a request that begins alike."""

    cached_tokens: int


class TokenUsage(BaseModel):
    """Tokens that were read of the prompt, its template included, and tokens of all answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Spoken(Within):
    """What every answer has; `timings` are seconds by stage, `warnings` what a person should know of the request."""

    id: str
    created: int
    model: str
    usage: TokenUsage | None = None
    timings: dict[str, float] | None = None
    warnings: list[str] | None = None


class TalkCompletion(Spoken):
    """A chat, answered."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Answer]


class TalkChunk(Spoken):
    """A piece of an answered chat; the last has the usage and no choices, where it was asked for."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[Piece]


class Completion(Spoken):
    """A text, continued; in a stream a piece of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Continuation]
