"""What is heard in a video's own file, and where a conversation hears it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams, WatchParams
from omnimuse.core.request import Clip, Recording
from omnimuse.media.clip import open_watched
from omnimuse.media.prompts import hears, with_sources, with_tracks
from omnimuse.media.recording import open_sound, read_track, samples_of
from omnimuse.media.sound import Sound
from omnimuse.media.video import Video, encode_video
from tests.checkpoints.wishes import chord, film

RATE = 16_000
CLIP = Clip(8, 8, (b"",))
TEXT = {"type": "text", "text": "what is this"}
VIDEO, AUDIO = {"type": "video"}, {"type": "audio"}


def filmed(channels: int = 1, *, silent: bool = False) -> bytes:
    """Three seconds of a video in which something is heard, or not."""
    sound = None if silent else Sound(samples_of(chord(RATE, 3, channels), RATE, channels), RATE)
    return encode_video(Video(film(32, 16, 6), 2.0), {}, sound)


def damaged(content: bytes) -> bytes:
    """A video whose frames can be read, and whose sound cannot."""
    broken = bytearray(content)
    with av.open(io.BytesIO(content)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.size:
                broken[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    return bytes(broken)


def recorded(kind: str) -> bytes:
    """A second of sound in a file without pictures, as telephones ("ipod") and browsers ("webm") write it."""
    file, wave = io.BytesIO(), samples_of(chord(48_000, 1, 1), 48_000, 1)
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream("aac" if kind == "ipod" else "libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        made = av.AudioResampler(format=stream.format, layout="mono", rate=48_000)
        for piece in [*made.resample(frame), *made.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_of_a_video_is_what_was_put_into_it(channels: int) -> None:
    heard = read_track(filmed(channels))
    assert heard is not None and (heard.rate, heard.channels) == (RATE, channels)
    assert heard.seconds == pytest.approx(3, abs=0.1)
    put = samples_of(chord(RATE, 3, channels), RATE, channels)
    for found, given in zip(samples_of(heard, RATE, channels), put, strict=True):
        alike = np.correlate(found, given[2000:-2000], "valid").max()
        assert alike / np.linalg.norm(found) / np.linalg.norm(given) > 0.9


def test_so_many_seconds_are_heard_and_nothing_where_nothing_is() -> None:
    heard = read_track(filmed(2), 0.5)
    assert heard is not None and heard.seconds == 0.5
    assert read_track(filmed(silent=True)) is None
    assert read_track(b"no video at all") is None


def test_a_track_that_is_damaged_is_refused() -> None:
    content = bytearray(filmed())
    del content[len(content) // 2 :]
    with pytest.raises(RequestError, match=r"cannot read the sound of film\.mp4"):
        read_track(bytes(content), name="film.mp4")


def recording(number: int) -> Recording:
    return Recording(RATE, 1, bytes([number, 0]))


@pytest.mark.parametrize(
    ("parts", "sounds", "expected", "heard"),
    [
        ([VIDEO, TEXT], [], [VIDEO, AUDIO, TEXT], [1]),
        ([VIDEO, VIDEO], [], [VIDEO, AUDIO, VIDEO, AUDIO], [1, 2]),
        ([AUDIO, VIDEO, TEXT, VIDEO], [8], [AUDIO, VIDEO, AUDIO, TEXT, VIDEO, AUDIO], [8, 1, 2]),
        ([VIDEO, AUDIO, VIDEO], [9], [VIDEO, AUDIO, VIDEO, AUDIO], [9, 2]),
        ([TEXT], [7], [TEXT], [7]),
    ],
)
def test_a_track_is_the_sound_right_behind_its_video_unless_another_is_there(
    parts: list[Any], sounds: list[int], expected: list[Any], heard: list[int]
) -> None:
    clips = [Clip(8, 8, (b"",), track=recording(number)) for number in (1, 2)]
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    made = with_tracks({"messages": said, "videos": clips, "sounds": [recording(number) for number in sounds]})
    assert made["messages"] == [said[0], {"role": "user", "content": expected}]
    assert [sound.pcm[0] for sound in made["sounds"]] == heard
    assert list(made["videos"]) == [CLIP, CLIP]


def test_a_prompt_without_messages_has_the_tracks_where_it_has_no_sounds() -> None:
    clip = Clip(8, 8, (b"",), track=recording(1))
    assert with_tracks({"prompt": "a", "videos": [clip]})["sounds"] == [recording(1)]
    assert with_tracks({"prompt": "a", "videos": [clip], "sounds": [recording(5)]})["sounds"] == [recording(5)]


def test_a_file_is_heard_only_where_that_is_asked_for() -> None:
    quiet, heard = DiffusionParams(), DiffusionParams(extra=WatchParams(use_audio_in_video=True))
    assert [hears(each) for each in (quiet, heard, DiffusionParams(extra={"use_audio_in_video": True}))] == [0, 1, 1]
    prompt = {"messages": [{"role": "user", "content": [{**VIDEO, "video": filmed()}, TEXT]}]}
    assert "sounds" not in with_sources(prompt, quiet, watched=True)
    opened: Any = with_sources(prompt, heard, watched=True)
    assert opened["sounds"] == [read_track(filmed())] and opened["videos"][0].track is None
    assert open_watched(filmed(), heard=True).track == opened["sounds"][0]


@pytest.mark.parametrize("kind", ["ipod", "webm"])
def test_what_a_telephone_or_a_browser_recorded_is_a_sound(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ("said.m4a" if kind == "ipod" else "said.webm")
    file.write_bytes(recorded(kind))
    heard = open_sound(file)
    assert (heard.channels, heard.seconds) == (1, pytest.approx(1, abs=0.1))
    assert heard == read_track(recorded(kind))
    assert np.abs(samples_of(heard, RATE, 1)).max() > 0.3
    file.write_bytes(filmed(silent=True))
    with pytest.raises(RequestError, match=r"nothing is heard in .*; give a file with a sound in it"):
        open_sound(file)
