"""The fields of requests to a model that speaks. Read with `fields.py`'s table."""

from __future__ import annotations

from omnimuse.core.request import MAX_PROMPT
from omnimuse.core.speech import FASTEST, MAX_INSTRUCTIONS, SLOWEST
from omnimuse.server.translate.field import (
    ADAPTERS,
    BLOCKS,
    DEADLINE,
    HARMLESS,
    MAX_WORD,
    MODEL,
    TIMEOUT,
    Field,
    refused,
)

_ABUSE = "names an end user for abuse monitoring; this server does none and keeps none"
_NO_NUMBERS = "a voice is that of a sound: send it as `ref_audio`"
_FIRST = "the first piece of sound is of four frames, those behind it of 25"

SPEECH: tuple[Field, ...] = (
    MODEL,
    Field("input", "text", "prompt", "what is said", longest=MAX_PROMPT),
    Field("prompt", "text", "prompt", "as `input` (ours)", longest=MAX_PROMPT),
    Field("voice", "text", "voice", "one of /v1/audio/voices; without it, the first", longest=MAX_WORD),
    Field("language", "text", "language", "one of /v1/audio/voices; without it, that of the text", longest=MAX_WORD),
    Field(
        "instructions", "text", "instructions", "how it is spoken, or what the voice is like", longest=MAX_INSTRUCTIONS
    ),
    Field(
        "response_format",
        "choice",
        "format",
        "the file's format; pcm is samples of 16 bits, low byte first, and nothing else",
        allowed=("wav", "flac", "mp3", "opus", "aac", "ogg", "pcm"),
    ),
    Field(
        "stream_format",
        "choice",
        "flow",
        "audio sends wav or pcm as it is made, sse the same in events; without it, the answer is the whole file",
        allowed=("audio", "sse"),
    ),
    Field("speed", "real", "speed", "played so much faster, at the same pitch: 0.25 to 4", low=SLOWEST, high=FASTEST),
    Field("seed", "seed", "seed", "the same seed says it the same way; chosen at random when absent or -1"),
    Field("max_new_tokens", "whole", "max_tokens", "frames of sound, at most (VO)", low=1),
    Field("max_tokens", "whole", "max_tokens", "as `max_new_tokens`", low=1),
    Field("temperature", "real", "temperature", "0: the likeliest sound every time", low=0, high=100),
    Field("top_p", "real", "top_p", "draw from the sounds that make up so much", low=0, high=1),
    Field("top_k", "whole", "top_k", "draw from so many sounds; 0 and -1: from all", low=-1),
    Field("repetition_penalty", "real", "repetition_penalty", "above 1: sound less like before", low=0.01),
    TIMEOUT,
    DEADLINE,
    BLOCKS,
    *ADAPTERS,
    Field("user", "text", HARMLESS, _ABUSE, longest=MAX_WORD),
    Field("safety_identifier", "text", HARMLESS, _ABUSE, longest=MAX_WORD),
    *refused("choose `stream_format`", "stream", neutral=(False,)),
    *refused("the checkpoint decides what it does", "task_type"),
    Field("ref_audio", "urls", "urls", "a sound whose voice it is, where a model takes one: a data: URL or an address"),
    Field(
        "ref_text", "text", "ref_text", "what is said in that sound, which it then goes on as", longest=MAX_INSTRUCTIONS
    ),
    Field("x_vector_only_mode", "flag", "alone", "of that sound, its voice alone is taken, and `ref_text` not read"),
    *refused(_NO_NUMBERS, "speaker_embedding"),
    *refused(_FIRST, "initial_codec_chunk_frames"),
    *refused("one request makes one sound", "n", neutral=(1,)),
)
"""/v1/audio/speech."""
