"""A video that is made of another keeps its sound: every family that takes videos, as far as it fits."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from omnimuse import Omni
from omnimuse.core.errors import RequestError
from omnimuse.media.clip import open_changed, open_watched
from omnimuse.media.finished import encode
from omnimuse.media.recording import read_track, samples_of
from tests.checkpoints import lucy_edit, wan, wan_vace
from tests.once import Once
from tests.unit.media.test_track import RATE, damaged, filmed

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "wan": partial(wan.build, kind="2.1"),
    "wan_vace": wan_vace.build,
    "lucy_edit": lucy_edit.build,
}
SMALL = {"num_inference_steps": 2, "num_frames": 5, "height": 32, "width": 32}


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.crossed("kept sound")) for name in FAMILIES])
def test_what_is_made_of_a_video_has_its_sound_as_long_as_it_lasts(family: str, once: Once) -> None:
    file = filmed(2)
    given = read_track(file, 2.5)
    assert given is not None
    with Omni(str(once.folder(family, FAMILIES[family])), dtype="float32", device="cpu") as omni:
        kept, faster, silent, broken, numbers, latents = omni.generate(
            [
                {"prompt": "a star", "videos": [each]}
                for each in (file, file, filmed(silent=True), damaged(file), file, file)
            ],
            [
                {**SMALL, **more}
                for more in ({}, {"fps": 8.0}, {}, {}, {"output_type": "pt"}, {"output_type": "latent"})
            ],
            progress=False,
        )
    assert {each.error for each in (kept, faster, silent, broken, numbers, latents)} == {None}
    [sound] = kept.audios
    assert (sound.rate, kept.videos[0].seconds, kept.warnings) == (RATE, 2.5, [])
    assert np.array_equal(sound.samples, samples_of(given, RATE, 2))
    with av.open(io.BytesIO(encode(kept.parts[0], "MP4", {}))) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 1)
    assert (faster.audios, silent.audios, silent.warnings) == ([], [], [])
    assert faster.warnings == [
        "the sound of the video was left out, for it would not fit: it has 2 frames a second, and 8 were asked for; "
        "leave fps out to keep it"
    ]
    [told] = broken.warnings
    assert told.startswith("the sound of the video was left out: cannot read the sound of the video: ")
    assert (broken.audios, len(broken.videos)) == ([], 1)
    [heard] = numbers.tensors["audio"]
    assert np.array_equal(heard.numpy(), sound.samples) and list(numbers.tensors) == ["video", "audio"]
    assert (list(latents.tensors), numbers.warnings) == (["video"], [])
    assert latents.warnings == [
        "the sound of the video was left out, for latents have none; ask for 'pil' or 'pt' to keep it"
    ]


def test_of_a_file_as_much_is_heard_as_its_frames_last() -> None:
    made = open_changed(filmed(), 3)
    assert (len(made.frames), made.track) == (3, read_track(filmed(), 1.5))
    assert open_changed(filmed(silent=True)).track is None
    broken = open_changed(damaged(filmed()), 3)
    assert (len(broken.frames), broken.track) == (3, None)
    assert broken.lost.startswith("cannot read the sound of the video: ")
    with pytest.raises(RequestError, match="cannot read the sound of the video"):
        open_watched(damaged(filmed()), heard=True)
