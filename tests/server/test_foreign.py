"""A pipeline that runs through the library, behind the server: its pictures to the bit, and the truth about it."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnimuse.media.image import to_image
from omnimuse.media.sound import encode_sound, to_sound
from tests.checkpoints.foreign import foreign
from tests.server.whole_server import WholeServer

ARCH = "StableDiffusionXLPipeline"
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def server(foreign_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    home, options = tmp_path_factory.mktemp("foreign-server"), ("--dtype", "float32", "--device", "cpu")
    with WholeServer(home, str(foreign_folder(ARCH)), *options) as started:
        started.wait_ready()
        yield started


@pytest.mark.costly(turns=3)
def test_a_picture_over_http_is_what_the_library_gives(server: WholeServer, foreign_folder: Folder) -> None:
    entry = foreign(ARCH)
    answer = server.draw(
        size="96x64",
        num_inference_steps=3,
        guidance_scale=4.0,
        seed=7,
        n=2,
        extra_params={"original_size": [128, 128], "crops_coords_top_left": [8, 0]},
    )
    assert answer.status == 200, answer.json
    for data, seed in zip(answer.json["data"], (7, 8), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))) as picture:
            expected = to_image(entry.reference(foreign_folder(ARCH), "a red circle", seed))
            assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_the_list_of_models_tells_that_it_runs_through_the_library(server: WholeServer) -> None:
    [model] = server.ask("/v1/models").json["data"]
    can = model["capabilities"]
    assert (can["library"], can["family"], can["tasks"]) == ("diffusers", ARCH, ["text-to-image"])
    assert can["notes"]["shared forwards"].startswith("no: ")
    assert (can["defaults"]["width"], can["defaults"]["height"]) == (128, 128)
    assert {"guidance_scale", "negative_prompt"} <= set(can["parameters"])
    assert "max_sequence_length" not in can["parameters"]
    assert (can["extra"]["eta"], can["extra"]["prompt_2"]) == (0.0, None)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"guidance_rescal": 1.0}, "did you mean 'guidance_rescale'"),
        ({"clip_skip": "two"}, "clip_skip='two' does not fit this model; give int"),
    ],
)
def test_what_the_class_does_not_take_is_refused_by_name(
    server: WholeServer, extra: dict[str, object], message: str
) -> None:
    answer = server.draw(extra_params=extra)
    assert answer.status == 400
    assert message in answer.json["error"]["message"]


@pytest.mark.costly
def test_a_video_whose_size_is_left_to_the_class_is_told_as_such(foreign_folder: Folder, tmp_path: Path) -> None:
    options, folder = ("--dtype", "float32", "--device", "cpu", "--warm-up", "none"), tmp_path / "model"
    shutil.copytree(foreign_folder("CogVideoXPipeline"), folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    sizeless = {name: value for name, value in config.items() if name not in ("sample_height", "sample_width")}
    (folder / "transformer" / "config.json").write_text(json.dumps(sizeless))
    with WholeServer(tmp_path / "home", str(folder), *options) as started:
        started.wait_ready()
        sizes = [{"size": "96x64"}, {}]
        told = [started.ask("/v1/videos", {"prompt": "a", "num_frames": 5, **size}).json["size"] for size in sizes]
    assert told == ["96x64", "auto"]


@pytest.mark.costly
def test_a_sound_over_http_is_what_the_library_gives(foreign_folder: Folder, tmp_path: Path) -> None:
    arch = "LongCatAudioDiTPipeline"
    entry, folder = foreign(arch), foreign_folder(arch)
    asked = {"input": "a red circle", "num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": "grey"}
    with WholeServer(tmp_path, str(folder), "--dtype", "float32", "--device", "cpu") as started:
        started.wait_ready()
        answer = started.ask("/v1/audio/generate", {**asked, "audio_length": 2.0, "seed": 7})
        told = started.ask("/v1/audio/generate", {**asked, "audio_start": 1.0})
        wrong = started.ask("/v1/images/generations", {"prompt": "a red circle"})
    assert answer.status == 200, answer.json
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("audio/wav", "7")
    expected = encode_sound(to_sound(entry.reference(folder, "a red circle", 7), 1000), "WAV", {})
    at = answer.content.index(b"omni")
    assert answer.content[8:at] == expected[8 : expected.index(b"omni")]
    assert "this model makes its sounds whole" in told.json["error"]["message"]
    assert wrong.status == 404
    assert "does text-to-audio (POST /v1/audio/generate)" in wrong.json["error"]["message"]
