"""Pipelines that run through the library: what it gives when it is called directly, to the bit, from every side."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omnimuse import Omni
from omnimuse.api import explain
from omnimuse.cli import main
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.media.image import to_image
from omnimuse.media.picture import picture_of
from omnimuse.media.sound import Sound, encode_sound, to_sound
from omnimuse.media.video import encode_video, to_video
from omnimuse.worker.blocks import named_blocks
from tests.checkpoints.foreign import FOREIGN, Foreign, foreign
from tests.checkpoints.wishes import photo
from tests.invariants.conftest import config, drain, results, run, submit
from tests.second_device import SecondDevice, moved

Folder = Callable[[str], Path]
PROMPT = "a red circle"


@pytest.fixture(scope="module", params=FOREIGN, ids=lambda entry: entry.arch)
def entry(request: pytest.FixtureRequest) -> Foreign:
    return request.param


def asked(entry: Foreign) -> dict[str, object]:
    if entry.picture is not None:
        return {"images": [entry.picture]}
    return {"prompt": PROMPT} | ({} if entry.negative is None else {"negative_prompt": entry.negative})


def draw(entry: Foreign, folder: Path, **choices: object) -> Tensor:
    params = replace(entry.params, **choices)  # type: ignore[arg-type]
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        [result] = omni.generate([asked(entry)], params, progress=False)
    assert result.error is None, result.error
    return result.output


@pytest.mark.crossed
def test_two_outputs_in_flight_are_what_the_library_gives_for_their_seeds(
    entry: Foreign, foreign_folder: Folder
) -> None:
    folder = foreign_folder(entry.arch)
    found = draw(entry, folder, output_type="pt", num_outputs_per_prompt=2)
    for output, seed in zip(found, (7, 8), strict=True):
        assert torch.equal(output, entry.reference(folder, PROMPT, seed))
    assert not torch.equal(found[0], found[1])


@pytest.mark.crossed
def test_a_second_device_draws_what_the_cpu_draws(entry: Foreign, foreign_folder: Folder) -> None:
    """What the library waits for is its own, and nobody counts it."""
    given = asked(entry) if entry.picture is None else {"images": [picture_of(entry.picture)]}
    ask = Ask(given, replace(entry.params, num_outputs_per_prompt=2, output_type="pt"))
    with closing(start(config(foreign_folder(entry.arch)))) as engine:
        expected = run(engine, ask)
        with SecondDevice() as device:
            found = run(moved(engine, device), ask)
    assert torch.equal(*found, *expected)


@pytest.mark.crossed
def test_every_run_of_a_block_is_told_from_the_first_step_on_and_nothing_else_is_drawn(
    entry: Foreign, foreign_folder: Folder
) -> None:
    given = asked(entry) if entry.picture is None else {"images": [picture_of(entry.picture)]}
    ask = Ask(given, replace(entry.params, output_type="pt"))
    ran: list[str] = []

    def note(name: str, *_: object) -> None:
        ran.append(name)

    with closing(start(config(foreign_folder(entry.arch)))) as engine:
        [expected] = run(engine, ask)
        components = engine.runner.pipeline.ctx.components
        for component in components:
            for name, block in named_blocks(component, components.wherever(component)):
                block.register_forward_hook(partial(note, name))
        [id_] = submit(engine, replace(ask, blocks=True))
        [result] = results(engine, drain(engine), [id_])
    assert torch.equal(result.output, expected)
    told = {name: len(runs) for name, runs in result.blocks.items()}
    assert told and told == Counter(ran)
    assert {name: len(held) for name, held in result.blocks_held.items()} == told
    assert sum(map(sum, result.blocks.values())) <= sum(result.timings.values()), "stages have what their blocks took"


@pytest.mark.parametrize("arch", ["AuraFlowPipeline", "LTXPipeline", "LongCatAudioDiTPipeline"])
def test_latents_are_the_librarys(arch: str, foreign_folder: Folder) -> None:
    entry, folder = foreign(arch), foreign_folder(arch)
    [found] = draw(entry, folder, output_type="latent")
    assert torch.equal(found, entry.reference(folder, PROMPT, 7, "latent"))


@pytest.mark.crossed
def test_the_command_line_writes_what_the_library_gives(
    entry: Foreign, foreign_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = foreign_folder(entry.arch), [PROMPT]
    if entry.picture is not None:
        entry.picture.save(tmp_path / "start.png")
        said = ["--image", "start.png"]
    with chdir(tmp_path):
        assert main(["generate", *said, "-m", str(folder), "--json", *options(entry)]) == 0
    [name] = json.loads(capsys.readouterr().out)["results"][0]["files"]
    made, expected = tmp_path / name, entry.reference(folder, PROMPT, 7)
    if made.suffix == ".png":
        with Image.open(made) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(to_image(expected)))
    elif made.suffix == ".mp4":
        rates = {"CogVideoXPipeline": 8.0}
        clip = encode_video(to_video(expected, entry.params.fps or rates[entry.arch]), {})
        assert np.array_equal(frames(made.read_bytes()), frames(clip))
    else:
        assert samples(made.read_bytes()) == samples(encode_sound(to_sound(expected, 1000), "WAV", {}))


def test_a_pipeline_that_reads_no_prompt_says_so_and_refuses_one(
    foreign_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = foreign("StableVideoDiffusionPipeline")
    folder = str(foreign_folder(entry.arch))
    assert [choice.value for choice in explain(folder) if choice.name == "prompt"] == ["none"]
    with Omni(folder, dtype="float32", device="cpu") as omni:
        with pytest.raises(RequestError, match="prompt means nothing to StableVideoDiffusionPipeline"):
            omni.generate({"prompt": "a storm", **asked(entry)}, entry.params, progress=False)
        with pytest.raises(RequestError, match=r"StableVideoDiffusionPipeline needs at least 1 \(`images`\)"):
            omni.generate("", entry.params, progress=False)
    photo(8, 8).save(tmp_path / "p.png")
    with chdir(tmp_path):
        assert main(["generate", "a storm", "--image", "p.png", "-m", folder]) == 2
        assert "prompt means nothing" in capsys.readouterr().err
        assert main(["generate", "--image", "p.png"]) == 2
        assert "there is no prompt" in capsys.readouterr().err


def test_sounds_are_named_kept_and_made_again_as_pictures_are(
    foreign_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = foreign("LongCatAudioDiTPipeline")
    words = [PROMPT, "-m", str(foreign_folder(entry.arch)), *options(entry), "--quiet"]
    with chdir(tmp_path):
        assert main(["generate", *words]) == 0
        assert main(["generate", "--from", "sound.wav", "--quiet"]) == 0
        assert main(["generate", *words, "-n", "2", "--resume"]) == 0
        assert main(["generate", *words, "-n", "3", "--resume"]) == 0
    assert capsys.readouterr().out.split() == ["sound.wav", "sound-001.wav", "sound-002.wav", "sound-003.wav"]
    first, again, second, third = (
        samples((tmp_path / name).read_bytes())
        for name in ("sound.wav", "sound-001.wav", "sound-002.wav", "sound-003.wav")
    )
    assert first == again
    assert len({first, second, third}) == 3


def options(entry: Foreign) -> list[str]:
    """The request of `entry` as options of the command line."""
    p, extra = entry.params, dict(entry.params.extra or {})  # type: ignore[call-overload]
    if p.max_sequence_length is not None:
        extra["max_sequence_length"] = p.max_sequence_length
    words = {
        "--steps": p.num_inference_steps,
        "--guidance": p.guidance_scale,
        "--size": None if p.width is None else f"{p.width}x{p.height}",
        "--frames": p.num_frames,
        "--fps": p.fps,
        "--seconds": p.seconds,
        "--negative": entry.negative,
    }
    chosen = [str(word) for pair in words.items() if pair[1] is not None for word in pair]
    settings = [word for name, value in extra.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return [*chosen, *settings, "--seed", str(p.seed), "--dtype", "float32", "--device", "cpu"]


def frames(file: bytes) -> np.ndarray:
    """The decoded frames of an MP4 file."""
    with av.open(io.BytesIO(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def samples(file: bytes) -> bytes:
    """A WAV file up to its settings."""
    return file[8 : file.index(b"omni")]


def test_sound_comes_back_with_its_rate(foreign_folder: Folder) -> None:
    entry = foreign("LongCatAudioDiTPipeline")
    with Omni(str(foreign_folder(entry.arch)), dtype="float32", device="cpu") as omni:
        result = omni.generate(asked(entry), entry.params, progress=False)[0]
    [sound] = result.audios
    assert isinstance(sound, Sound)
    assert (sound.rate, sound.samples.shape, sound.seconds) == (1000, (1, 2000), 2.0)
    assert (result.images, result.videos, result.output) == ([], [], None)
