"""What is heard in a video's own file: its first track of sound, as a recording.

Called by the Python API, the command line, and the process that decodes what strangers send; files from strangers must
not be opened here in a process that matters (see `foreign_sound.py`). PyAV, an optional library, reads the files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from omnimuse.core.errors import RequestError, reason
from omnimuse.core.request import Recording
from omnimuse.media.foreign_clip import kind_of
from omnimuse.media.foreign_sound import CHANNELS
from omnimuse.media.recording import MOST
from omnimuse.media.streamed import pyav


def read_track(content: bytes, most: float = MOST, name: str = "the video") -> Recording | None:
    """What is heard in the first `most` seconds of the video in `content`; None where its file has no sound, or is no
    video at all. RequestError for a track that cannot be read.
    """
    av, kind = pyav(), kind_of(content)
    if kind is None:
        return None
    try:
        with av.open(io.BytesIO(content), format=kind, metadata_errors="ignore") as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1  # a process that is locked in can start no thread
            channels = stream.channels if 0 < stream.channels <= CHANNELS else 2
            layout = None if channels == stream.channels else "stereo"
            made = av.AudioResampler(format="s16", layout=layout)  # the format alone: its rate stays
            pieces, wanted = list[bytes](), int(most * stream.rate) * channels * 2
            for piece in _pieces(made, container.decode(stream)):
                pieces.append(piece)
                wanted -= len(piece)
                if wanted <= 0:
                    break
            pcm = b"".join(pieces)
            return Recording(stream.rate, channels, pcm[: len(pcm) + min(wanted, 0)]) if pcm else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RequestError(f"cannot read the sound of {name}: {reason(error)}", "videos") from None


def _pieces(made: Any, frames: Iterator[Any]) -> Iterator[bytes]:
    """The samples of `frames`, of 16 bits, those of the channels in turn, low byte first."""
    for frame in frames:
        for whole in made.resample(frame):
            yield np.ascontiguousarray(whole.to_ndarray()).astype("<i2").tobytes()
