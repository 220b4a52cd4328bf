"""The bodies of the endpoints of voices: OpenAI's, and the list as vLLM-Omni has it, with languages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from omnimuse.core.speech import MAX_INSTRUCTIONS


class VoiceRequest(BaseModel):
    """A sound whose voice is kept by a name, with who agreed to it, and perhaps what is said in it (vLLM-Omni's)."""

    model_config = ConfigDict(extra="forbid")

    audio_sample: str = Field(json_schema_extra={"format": "binary"})
    name: str = Field(min_length=1, max_length=64)
    consent: str = Field(min_length=1, max_length=256)
    ref_text: str | None = Field(default=None, max_length=MAX_INSTRUCTIONS)
    type: Literal["audio_sample"] = "audio_sample"


class KeptVoice(BaseModel):
    """A voice that is kept; `consent` and `seconds` are ours, `ref_text` is vLLM-Omni's."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    created_at: int
    name: str
    type: Literal["audio_sample"] = "audio_sample"
    consent: str
    seconds: float
    ref_text: str | None = None


class VoiceDeleted(BaseModel):
    """A voice that was removed."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: Literal[True] = True


class Voices(BaseModel):
    """Who the model can speak as, those that this key keeps among them, and in which languages."""

    voices: list[str]
    languages: list[str]
    uploaded_voices: list[KeptVoice]
