"""The fields of requests to a model that hears, to write down what is said in a sound, and what it is asked for then.

Read with `fields.py`'s table. Such a model is no recogniser of speech: it is shown the sound in a conversation, with
words that ask for the text, and what it writes is the answer.
"""

from __future__ import annotations

from typing import Any

from omnimuse.core.request import MAX_PROMPT
from omnimuse.server.translate.field import BLOCKS, DEADLINE, HARMLESS, MAX_WORD, MODEL, TIMEOUT, Field, refused

_NO_TIMES = "when each word is said is not known here"
_NO_SPEAKERS = "who says what is not told"

HEARING: tuple[Field, ...] = (
    MODEL,
    Field("file", "file", "sounds", "the sound: wav, flac, ogg or mp3"),
    Field("prompt", "text", "prompt", "words that may occur in it, for their spelling", longest=MAX_PROMPT),
    Field("language", "text", "tongue", "the language that is spoken in it, by name or code", longest=MAX_WORD),
    Field(
        "response_format",
        "choice",
        "transport",
        f"json, or text: the text alone; the others tell times, and {_NO_TIMES}",
        allowed=("json", "text"),
    ),
    Field("stream", "flag", "stream", "answer with server-sent events, word by word"),
    Field("temperature", "real", "temperature", "0, the usual one: the likeliest words", low=0, high=1),
    Field("max_tokens", "whole", "max_tokens", "of the text, at most (ours)", low=1),
    Field("seed", "seed", "seed", "of what is drawn by chance (ours)"),
    TIMEOUT,
    DEADLINE,
    BLOCKS,
    Field("chunking_strategy", "text", HARMLESS, "the sound is heard whole", longest=MAX_WORD),
    *refused(_NO_TIMES, "timestamp_granularities"),
    *refused("how likely tokens were is not told", "include"),
    *refused(_NO_SPEAKERS, "known_speaker_names", "known_speaker_references"),
)
"""/v1/audio/transcriptions and /v1/audio/translations."""


def asked(translated: bool, language: str | None, words: str | None) -> list[dict[str, Any]]:
    """The conversation in which a sound is shown and its text is asked for, in English if `translated`."""
    spoken = f", which is in the language {language}," if language else ""
    wish = (
        f"Translate the audio{spoken} into English text." if translated else f"Transcribe the audio{spoken} into text."
    )
    if words and words.strip():
        wish += f" These words may occur in it: {words.strip()}"
    return [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": wish}]}]
