"""Outputs of several media: one declaration, parts of any length, and pieces of them as they are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import NumericalError
from omnimuse.core.loras import Lora
from omnimuse.core.output import Chunk, Done, Event, Progress, Result
from omnimuse.core.request import Ask, Door
from omnimuse.core.spec import SoundLimits
from omnimuse.deploy.results import Spool
from omnimuse.deploy.wire import Form
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import present
from omnimuse.media.finished import save
from omnimuse.media.sound import Sound
from omnimuse.media.video import Video
from omnimuse.pipeline.pipeline import Pipeline, PipelineError
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State
from omnimuse.worker.runner import Runner
from tests.fakes import SPEC, Clock, Encode, ask, context, limits

LIMITS = replace(limits({}), sound=SoundLimits(8000, 1), max_frames=9)
FILM = replace(
    SPEC,
    tasks=("text-to-video",),
    limits=lambda configs: LIMITS,
    defaults=replace(SPEC.defaults, num_frames=5, fps=8.0, output_type="pil"),
    supported=frozenset({"num_frames", "fps"}),
)


class Film(Stage):
    """A grey video."""

    name = "film"
    reads = ("embeds",)
    writes = ("frames",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            p = state.request.params
            state["frames"] = torch.full((p.num_frames or 1, 3, p.height or 8, p.width or 8), 0.5)


class Speak(Loop):
    """A sound of 100 samples a step, and a word; output i takes i steps more. Of "a mute" there is no sound."""

    name = "speak"
    reads = ("embeds",)
    writes = ("sound", "words")

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state["sound"] = torch.zeros(1, 0)
        return [Step(index) for index in range(2 + state.output)]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        piece = torch.full((1, 100), 0.1 * (step.index + 1))
        state.grow("audio", 100 * step.index, piece)
        state.grow("text", 2 * step.index, "la")
        state["sound"] = torch.cat([state["sound"], piece], dim=1)

    def finish(self, ctx: Context, state: State) -> None:
        state["words"] = "la" * (2 + state.output)
        if state.request.prompt == "a mute":
            state["sound"] = None


class Talkie(Pipeline):
    spec = FILM
    stages = (Encode(), Film(), Speak())
    results = MappingProxyType({"video": "frames", "audio": "sound", "text": "words"})


def talkie() -> Engine:
    ctx = replace(context(), spec=FILM, limits=LIMITS)
    runner = Runner(Talkie(ctx), ScheduleConfig(strict_slots=True, company="always"))
    return Engine(runner, Door.of(FILM, {}, "fake"), Clock())


def run(asked: Ask) -> tuple[Result, list[Event]]:
    engine, events = talkie(), []
    engine.submit(engine.make_request(asked))
    while not engine.idle:
        events += engine.tick()
    [done] = [event for event in events if isinstance(event, Done)]
    return done.result, events


def test_a_result_holds_every_medium_and_outputs_may_differ_in_length() -> None:
    result, _ = run(ask(num_outputs_per_prompt=2, output_type="pt"))
    assert list(result.tensors) == ["video", "audio", "text"]
    assert result.output is result.tensors["video"]
    assert result.tensors["video"].shape == (2, 5, 3, 16, 16)
    assert [tuple(sound.shape) for sound in result.tensors["audio"]] == [(1, 200), (1, 300)]
    assert result.tensors["text"] == ["lala", "lalala"]
    assert present(result, LIMITS) is result


def test_parts_are_what_people_see_hear_and_read() -> None:
    result, _ = run(ask(num_outputs_per_prompt=2))
    shown = present(result, LIMITS)
    assert [[part.medium for part in parts] for parts in shown.parts] == [["video", "audio", "text"]] * 2
    assert [(len(video.frames), video.fps) for video in shown.videos] == [(5, 8.0)] * 2
    assert [(sound.rate, sound.samples.shape) for sound in shown.audios] == [(8000, (1, 200)), (8000, (1, 300))]
    assert [parts[2].data for parts in shown.parts] == ["lala", "lalala"]
    assert (shown.images, shown.tensors) == ([], {})


def test_a_part_that_a_request_does_without_is_left_out() -> None:
    result, _ = run(ask("a mute"))
    shown = present(result, LIMITS)
    assert [part.medium for part in shown.parts[0]] == ["video", "text"]


def test_values_that_are_no_numbers_are_found_in_every_medium() -> None:
    result, _ = run(ask())
    broken = replace(result, tensors={**result.tensors, "audio": result.tensors["audio"] * float("nan")})
    with pytest.raises(NumericalError, match=r"outputs \[0\] hold values that are not finite"):
        present(broken, LIMITS)


def test_an_error_of_numbers_names_the_adapters_that_were_worn() -> None:
    result, _ = run(ask())
    params = replace(result.params, loras=(Lora("styles/ink.safetensors", 90.0), Lora("unworn.safetensors", 0.0)))
    audio = result.tensors["audio"] * float("inf")
    with pytest.raises(NumericalError, match=r"may help; it wore ink.safetensors at 90: try without, or at a lower"):
        present(replace(result, params=params, tensors={"audio": audio}), LIMITS)
    error = present(replace(result, params=params, error=NumericalError("no logits")), LIMITS).error
    assert str(error) == "no logits; it wore ink.safetensors at 90: try without, or at a lower scale"


def test_pieces_come_as_they_are_finished_and_make_up_the_whole() -> None:
    result, events = run(replace(ask(num_outputs_per_prompt=2, output_type="pt"), chunks=True))
    for output in range(2):
        chunks = [e for e in events if isinstance(e, Chunk) and e.output == output]
        sound = [chunk for chunk in chunks if chunk.medium == "audio"]
        assert [chunk.start for chunk in sound] == [100 * i for i in range(2 + output)]
        assert np.array_equal(np.concatenate([c.data for c in sound], 1), result.tensors["audio"][output].numpy())
        assert "".join(c.data for c in chunks if c.medium == "text") == result.tensors["text"][output]
    first = next(index for index, event in enumerate(events) if isinstance(event, Chunk))
    last = max(i for i, event in enumerate(events) if isinstance(event, Progress) and event.stage == "speak")
    assert first < last, "they come while there is more to do"


def test_nobody_is_told_of_pieces_who_did_not_ask() -> None:
    assert not [event for event in run(ask())[1] if isinstance(event, Chunk)]


def test_the_declaration_begins_with_what_the_spec_says_and_names_written_slots() -> None:
    def declare(**results: str) -> None:
        type("Declared", (Pipeline,), {"spec": FILM, "stages": Talkie.stages, "results": results})

    with pytest.raises(PipelineError, match="no stage writes the result slot 'nowhere'"):
        declare(video="frames", audio="nowhere")
    with pytest.raises(PipelineError, match="results must begin with 'video'"):
        declare(audio="sound", video="frames")
    with pytest.raises(PipelineError, match="the medium 'smell'; use image, video, audio, text"):
        declare(video="frames", smell="sound")


@pytest.fixture
def talking() -> Result:
    result, _ = run(ask())
    shown = present(result, LIMITS)
    return replace(shown, parts=tuple(parts[:2] for parts in shown.parts))  # text goes into no file


def check_film(path: Path) -> None:
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 5
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 8000
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 200


def test_a_video_and_its_sound_are_one_file_wherever_it_is_written(talking: Result, tmp_path: Path) -> None:
    save(talking.parts[0], tmp_path / "talkie.mp4", {"prompt": "x"})
    check_film(tmp_path / "talkie.mp4")
    request = talkie().make_request(ask())
    [made] = Spool(tmp_path, "w0", {}).write(0, request, talking, Form("MP4"))
    check_film(tmp_path / made.name)
    assert (made.width, made.height, made.frames, made.fps, made.seconds, made.rate) == (16, 16, 5, 8.0, 5 / 8, None)


def test_a_sound_alone_is_a_file_that_says_how_long_it_is(tmp_path: Path) -> None:
    result = run(ask())[0]
    sounds = replace(present(result, LIMITS), parts=present(result, LIMITS).parts[:1])
    alone = replace(sounds, parts=(sounds.parts[0][1:2],))
    [made] = Spool(tmp_path, "w0", {}).write(0, talkie().make_request(ask()), alone, Form("WAV"))
    assert (made.name[-4:], made.seconds, made.rate, made.frames, made.width) == (".wav", 0.025, 8000, 0, 0)
    assert isinstance(alone.audios[0], Sound) and not [v for v in alone.videos if isinstance(v, Video)]


def test_a_picture_in_layers_is_a_picture_and_a_file_for_each(tmp_path: Path) -> None:
    layers = torch.stack([torch.full((4, 8, 8), value) for value in (0.0, 0.2, 1.0)])
    request = Door.of(SPEC, {}, "fake").make_request(ask(num_outputs_per_prompt=2, output_type="pil"), 0.0, 1)
    result = Result(request.id, "x", request.params, tensors={"image": torch.stack([layers, layers])}, seeds=[1, 2])
    shown = present(result, LIMITS)
    assert [len(parts) for parts in shown.parts] == [3, 3]
    assert [image.getpixel((0, 0)) for image in shown.images[:3]] == [(0,) * 4, (51,) * 4, (255,) * 4]
    spool = Spool(tmp_path, "w0", {})
    made = [file for number in range(2) for file in spool.write(number, request, shown, Form("PNG"))]
    assert [file.seed for file in made] == [1, 1, 1, 2, 2, 2]
    assert len({file.name for file in made}) == 6
    for file, image in zip(made, shown.images, strict=True):
        with Image.open(tmp_path / file.name) as kept:
            assert (kept.mode, kept.tobytes()) == ("RGBA", image.tobytes())
    [flat, *_] = spool.write(0, request, shown, Form("JPEG"))
    with Image.open(tmp_path / flat.name) as kept:
        assert kept.getpixel((0, 0)) == (255, 255, 255), "over white"
