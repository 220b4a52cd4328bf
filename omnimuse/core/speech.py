"""What a model that speaks can be asked for, and the check of a request against it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnimuse.core.bounds import is_text
from omnimuse.core.errors import RequestError
from omnimuse.core.names import meant
from omnimuse.core.params import AnswerParams, FamilyParams, SpeechParams

MAX_INSTRUCTIONS = 4_000
"""Characters that say how something is spoken."""
SHORTEST = 0.5
"""Seconds of a sound whose voice is to be heard."""
SLOWEST, FASTEST = 0.25, 4.0
"""How fast what was spoken may be played."""


def check_speech(chosen: FamilyParams, speech: Speech | None, sounds: int) -> None:
    """RequestError for what cannot be spoken so, by a model that speaks or answers aloud: of what it has, `speech`."""
    if isinstance(chosen, SpeechParams) and speech is not None:
        speech.check(chosen, sounds)
    if isinstance(chosen, AnswerParams) and chosen.aloud:
        if speech is None:
            why = 'this checkpoint has no talker, and answers in text alone; use modalities ["text"]'
            raise RequestError(f"modalities={list(chosen.modalities)} cannot be: {why}", "extra.modalities")
        speech.known("voice", chosen.voice, speech.voices)


@dataclass(frozen=True)
class Speech:
    """The `voices` and `languages` that a checkpoint has; whether `instructions` in words may or must be given, or why
    they cannot be (any other text). One that `clones` speaks with the voice of a sound, which it must be given.
    """

    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    instructions: Literal["may", "must"] | str = "may"
    clones: bool = False

    @property
    def choices(self) -> dict[str, list[str]]:
        """The words that may be chosen, by parameter."""
        return {"voice": list(self.voices), "language": list(self.languages)}

    @property
    def closed(self) -> frozenset[str]:
        """The parameters of which nothing can be chosen here."""
        taken = {
            "voice": self.voices,
            "language": self.languages,
            "instructions": self.instructions in ("may", "must"),
            "ref_text": self.clones,
        }
        return frozenset(name for name, can in taken.items() if not can)

    @property
    def needed(self) -> frozenset[str]:
        """The parameters without which nothing can be said."""
        return frozenset({"instructions"} if self.instructions == "must" else ())

    def check(self, chosen: SpeechParams, sounds: int) -> None:
        """RequestError for a voice or a language that is not there, for instructions that are not taken, and without
        the sound whose voice it is.
        """
        if self.clones and not sounds:
            why = "this checkpoint has no voice of its own, and speaks with that of a sound; give one (`sounds`)"
            raise RequestError(why, "sounds")
        self.known("voice", chosen.voice, self.voices)
        self.known("language", chosen.language, self.languages)
        if chosen.ref_text is not None:
            self.check_heard(chosen.ref_text)
        said = chosen.instructions
        if said is None or not said.strip():
            if self.instructions == "must":
                why = "this checkpoint makes up the voice that they describe"
                raise RequestError(f"instructions are missing: {why}; say how it sounds", "extra.instructions")
            return
        if self.instructions not in ("may", "must"):
            raise RequestError(f"instructions cannot be chosen here: {self.instructions}", "extra.instructions")
        _check_text("instructions", said)

    def check_heard(self, text: str) -> None:
        """RequestError for what cannot be said in the sound whose voice is taken."""
        if not self.clones:
            why = "this checkpoint takes no voice from a sound; leave it out"
            raise RequestError(f"`ref_text` cannot be chosen here: {why}", "extra.ref_text")
        if not text.strip():
            why = "write what is said in the sound, or leave it out, and the voice alone is taken"
            raise RequestError(f"`ref_text` is empty; {why}", "extra.ref_text")
        _check_text("ref_text", text)

    def known(self, name: str, value: str | None, known: tuple[str, ...]) -> None:
        """RequestError unless `value` is left open, or one of those `known`."""
        if value is None or value.lower() in known:
            return
        if not known:
            raise RequestError(f"{name}={value!r:.80} cannot be chosen: this checkpoint has none", f"extra.{name}")
        near = meant(value.lower()[:80], known)
        hint = f"did you mean {near!r}?" if near else f"use one of {', '.join(known)}"
        raise RequestError(f"{name}={value!r:.80} is not known to this checkpoint; {hint}", f"extra.{name}")


def _check_text(name: str, text: str) -> None:
    """RequestError for a text that is too long to be told, or is none."""
    if len(text) > MAX_INSTRUCTIONS:
        why = f"at most {MAX_INSTRUCTIONS} are allowed"
        raise RequestError(f"`{name}`: there are {len(text)} characters; {why}", f"extra.{name}")
    if not is_text(text):
        why = "there is half a surrogate pair, which is no character; take it out"
        raise RequestError(f"`{name}`: {why}", f"extra.{name}")
