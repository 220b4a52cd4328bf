"""MP4 files: what goes in comes out, settings included, whole or not at all; without PyAV there is a clear word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from omnimuse.core.errors import RequestError
from omnimuse.media.sound import Sound
from omnimuse.media.video import (
    Video,
    check_video_destination,
    encode_video,
    read_settings,
    save_video,
    to_video,
)

QUARTERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
SETTINGS = {"prompt": 'a "wavy" flag, schön 漢字\nand 🙂', "seed": 7, "guidance_scale": 5.0, "num_frames": 5}


def clip(width: int = 64, height: int = 48, frames: int = 5, fps: float = 16.0) -> Video:
    """Four coloured quarters; the first one gets brighter from frame to frame."""
    pictures = []
    for number in range(frames):
        pixels = np.zeros((height, width, 3), np.uint8)
        top, left = slice(0, height // 2), slice(0, width // 2)
        bottom, right = slice(height // 2, height), slice(width // 2, width)
        for (rows, columns), colour in zip(
            [(top, left), (top, right), (bottom, left), (bottom, right)], QUARTERS, strict=True
        ):
            pixels[rows, columns] = colour
        pixels[top, left] = (255 * (number + 1) // frames, 0, 0)
        pictures.append(Image.fromarray(pixels))
    return Video(tuple(pictures), fps)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_frames_come_back_in_order_with_their_colours_and_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    save_video(clip(), path, {})
    found = decoded(path)
    assert [frame.shape for frame in found] == [(48, 64, 3)] * 5
    for picture, frame in zip(clip().frames, found, strict=True):
        for x, y in ((16, 12), (48, 12), (16, 36), (48, 36)):
            assert np.abs(frame[y, x].astype(int) - picture.getpixel((x, y))).max() <= 6
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert stream.frames == 5


@pytest.mark.parametrize(("fps", "exact"), [(24.0, (24, 1)), (23.976, (2997, 125)), (0.5, (1, 2)), (12.5, (25, 2))])
def test_any_rate_is_kept(tmp_path: Path, fps: float, exact: tuple[int, int]) -> None:
    save_video(clip(fps=fps), tmp_path / "clip.mp4", {})
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate.as_integer_ratio() == exact
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / fps, rel=5e-3)
    assert clip(fps=fps).seconds == 5 / fps


def test_one_frame_is_a_video_too(tmp_path: Path) -> None:
    save_video(clip(frames=1), tmp_path / "still.mp4", {})
    assert len(decoded(tmp_path / "still.mp4")) == 1


def test_an_odd_side_gets_its_last_pixels_twice(tmp_path: Path) -> None:
    save_video(clip(width=33, height=35), tmp_path / "odd.mp4", {})
    found = decoded(tmp_path / "odd.mp4")[0]
    assert found.shape == (36, 34, 3)
    assert np.abs(found[34, 33].astype(int) - 128).max() <= 6


def test_settings_come_back_as_they_went_in(tmp_path: Path) -> None:
    save_video(clip(), tmp_path / "clip.mp4", SETTINGS)
    assert read_settings(tmp_path / "clip.mp4") == SETTINGS
    long = {"prompt": "a red circle, " * 2000}
    save_video(clip(), tmp_path / "clip.mp4", long)
    assert read_settings(tmp_path / "clip.mp4") == long


def test_the_index_is_in_front_so_that_players_can_start_early() -> None:
    content = encode_video(clip(), SETTINGS)
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_an_old_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "clip.mp4"
    save_video(clip(frames=2), path, {})
    save_video(clip(frames=3), path, {})
    assert len(decoded(path)) == 3
    assert [each.name for each in path.parent.iterdir()] == ["clip.mp4"]


def test_a_failing_encoder_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    save_video(clip(), path, SETTINGS)
    with pytest.raises(TypeError):
        save_video(clip(), path, {"prompt": object()})
    assert read_settings(path) == SETTINGS


@pytest.mark.parametrize(("name", "message"), [("clip.avi", "use one of .mp4"), ("clip", "no suffix")])
def test_another_suffix_is_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_video_destination(tmp_path / name)


def test_files_without_our_settings_say_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(RequestError, match=r"cannot read .*text.mp4 as a video"):
        read_settings(tmp_path / "text.mp4")
    with pytest.raises(RequestError, match="cannot read"):
        read_settings(tmp_path / "nowhere.mp4")
    with av.open(str(tmp_path / "plain.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(RequestError, match="carries no settings"):
        read_settings(tmp_path / "plain.mp4")


def test_tensors_become_pictures_rounded_to_nearest() -> None:
    values = torch.linspace(-0.2, 1.2, 2 * 3 * 2 * 4).view(2, 3, 2, 4)
    video = to_video(values, 24.0)
    assert (len(video.frames), video.frames[0].size, video.fps) == (2, (4, 2), 24.0)
    expected = (values.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
    assert np.array_equal(np.stack([np.asarray(frame) for frame in video.frames]), expected.numpy())


def test_frames_of_several_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match=r"sizes \[\(4, 4\), \(8, 4\)\]"):
        Video((Image.new("RGB", (4, 4)), Image.new("RGB", (8, 4))), 16.0)
    with pytest.raises(RequestError, match="at least one"):
        Video((), 16.0)


def test_without_pyav_the_extra_is_named_before_any_work(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['av'] = None\n"
        "from pathlib import Path\n"
        "from omnimuse.media.video import check_video_destination\n"
        "check_video_destination(Path('clip.mp4'))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 1
    said = "ConfigError: videos, AAC files and other speeds of sound need PyAV, which is not installed: "
    said += 'pip install "omnimuse[video]"'
    assert said in found.stderr


def tone(rate: int, seconds: float, channels: int = 2, hertz: float = 440.0) -> Sound:
    """A tone, each channel half as loud as the one before it."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return Sound(np.stack([wave / 2**channel for channel in range(channels)]).astype(np.float32), rate)


def heard(path: Path) -> tuple[np.ndarray, int]:
    """The samples [channels, n] of the track, and their rate."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(frames, axis=1), container.streams.audio[0].rate


@pytest.mark.parametrize(("rate", "stored"), [(44100, 44100), (16000, 16000), (13000, 16000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_video_has_the_sound_that_belongs_to_it(tmp_path: Path, rate: int, stored: int, channels: int) -> None:
    """A tone of 440 Hz: as long, as loud in every channel, and as high as it went in."""
    save_video(clip(frames=24, fps=24.0), tmp_path / "clip.mp4", SETTINGS, tone(rate, 1.0, channels))
    samples, found = heard(tmp_path / "clip.mp4")
    assert found == stored
    assert samples.shape[0] == channels
    assert samples.shape[1] == pytest.approx(stored, abs=2048)
    middle = samples[:, stored // 4 : stored // 4 * 3]
    for channel, level in enumerate(middle.std(axis=1)):
        assert level == pytest.approx(0.5 / 2**channel / np.sqrt(2), rel=0.05)
    spectrum = np.abs(np.fft.rfft(middle[0] * np.hanning(middle.shape[1])))
    assert spectrum.argmax() * stored / middle.shape[1] == pytest.approx(440, abs=3)
    assert len(decoded(tmp_path / "clip.mp4")) == 24
    assert read_settings(tmp_path / "clip.mp4") == SETTINGS


def test_sound_and_frames_of_a_moment_are_close_together_in_the_file(tmp_path: Path) -> None:
    save_video(clip(frames=48, fps=24.0), tmp_path / "clip.mp4", {}, tone(44100, 2.0))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        times = {"video": [0.0], "audio": [0.0]}
        for packet in container.demux():
            if packet.pts is not None:
                times[packet.stream.type].append(float(packet.pts * packet.time_base))
                assert abs(max(times["video"]) - max(times["audio"])) < 0.5
    assert max(times["audio"]) > 1.9


def test_a_sound_may_be_shorter_or_longer_than_its_video(tmp_path: Path) -> None:
    for seconds in (0.25, 1.5):
        save_video(clip(frames=16), tmp_path / "clip.mp4", {}, tone(44100, seconds))
        assert heard(tmp_path / "clip.mp4")[0].shape[1] == pytest.approx(44100 * seconds, abs=2048)


def test_a_track_of_many_channels_is_refused() -> None:
    with pytest.raises(RequestError, match="a track has 1 or 2 channels, and this sound 3"):
        encode_video(clip(), {}, tone(8000, 0.1, 3))
