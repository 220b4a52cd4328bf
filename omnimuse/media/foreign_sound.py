"""Sounds from strangers: which are taken, and what is believed of what a child made of them.

The server asks `read_recording`. WAV, FLAC, OGG and MP3 by their first bytes only; what comes back are samples, checked
before they are believed. The child's half is in `decoder.py`; nothing here imports numpy or soundfile.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Recording
from omnimuse.media.sandbox import Question, Sandbox, SandboxError

HEAD = struct.Struct("<IH")
"""What a child's answer begins with: samples a second, channels."""
CHANNELS = 8
"""Of a sound that is taken, at most."""
RATES = (1000, 384_000)
_ROOM = 2**12  # bytes of an answer beside its samples


@dataclass(frozen=True)
class RecordingLimits:
    """What is decoded: at most so many milliseconds of a sound, and so many bytes of its samples; more is left out."""

    milliseconds: int = 60_000
    keep_bytes: int = 24 * 2**20


class SoundError(RequestError):
    """A sound that is not taken."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "audio")


def is_sound(content: bytes) -> bool:
    """Whether the first bytes announce a format that is read."""
    start = bytes(content[:12])
    riff = start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE"
    mp3 = start[:3] == b"ID3" or (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0)
    return riff or mp3 or start[:4] in (b"fLaC", b"OggS")


async def read_recording(
    sandbox: Sandbox, content: bytes, limits: RecordingLimits | None, tenant: str = ""
) -> Recording:
    """The sound in `content`; SoundError if it is none. Cancelling ends the work.

    CapacityError when too many files wait, or no child can be started.
    """
    limits = limits or RecordingLimits()
    if not is_sound(content):
        what = "is empty" if not content else "is no WAV, FLAC, OGG or MP3 file by its first bytes"
        raise SoundError(f"the sound {what}; send one of these formats")
    try:
        answer = await sandbox.ask(Question("sound", content, asdict(limits), limits.keep_bytes + _ROOM), tenant)
    except SandboxError as error:
        raise _refused(error) from None
    return believed(answer, limits)


async def read_foreign_track(
    sandbox: Sandbox, content: bytes, limits: RecordingLimits | None, tenant: str
) -> Recording | None:
    """What is heard in the video in `content`, None where its file has no sound; as `read_recording`, with a `sandbox`
    for videos.
    """
    limits = limits or RecordingLimits()
    try:
        answer = await sandbox.ask(Question("track", content, asdict(limits), limits.keep_bytes + _ROOM), tenant)
    except SandboxError as error:
        raise _refused(error) from None
    return believed(answer, limits) if answer else None


def believed(answer: bytes, limits: RecordingLimits) -> Recording:
    """The recording that a child made. Who took over a child could say anything: only whole samples are believed."""
    if len(answer) >= HEAD.size:
        rate, channels = HEAD.unpack_from(answer)
        pcm = answer[HEAD.size :]
        whole = 0 < channels <= CHANNELS and len(pcm) % (2 * channels) == 0
        if whole and RATES[0] <= rate <= RATES[1] and 0 < len(pcm) <= limits.keep_bytes:
            return Recording(rate, channels, pcm)
    raise _damaged()


def _refused(error: SandboxError) -> SoundError:
    if error.trouble == "large":
        return SoundError(f"the sound takes too much to read; send one of at most {CHANNELS} channels")
    if error.trouble == "slow":
        return SoundError("the sound cannot be read in time; save it anew, shorter or as a WAV file, and send that")
    return _damaged()


def _damaged() -> SoundError:
    return SoundError("the sound cannot be read: its file is damaged or incomplete; save it anew and send that")
