"""What a Wan checkpoint says of itself, and what it lets people ask for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Clip, Door, Request
from omnimuse.core.spec import OPTIONS
from omnimuse.media.picture import picture_of
from omnimuse.models.wan.pipeline import clean, is_high_noise, latent_shape, video_tokens
from omnimuse.models.wan.spec import SPEC, limits, pictures
from omnimuse.worker.find import find
from tests.checkpoints import wan
from tests.checkpoints.wishes import photo


@pytest.fixture(scope="module", params=["2.1", "A14B", "5B"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def door(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Door:
    folder = wan.build(tmp_path_factory.mktemp("wan") / "tiny", kind)
    return find(Config(ModelConfig(str(folder)))).door


def configs(**options: object) -> dict[str, dict[str, object]]:
    """Those of a checkpoint as published, as far as they are asked for; `options` is model_index.json's rest."""
    second = {"transformer_2": {"in_channels": 16}} if options.get("boundary_ratio") else {}
    return {"transformer": {"in_channels": 16}, "vae": {}, "scheduler": {}, OPTIONS: {**options}, **second}


def request(**params: object) -> Request:
    return Door.of(SPEC, configs(boundary_ratio=0.875), "").make_request(Ask("x", DiffusionParams(**params)), 0.0, 1)  # type: ignore[arg-type]


def ask(door: Door, **params: object) -> Request:
    return door.make_request(Ask("x", DiffusionParams(**params)), 0.0, 1)  # type: ignore[arg-type]


def scales(asked: Request) -> tuple[float, ...]:
    """The scale of each expert."""
    assert SPEC.guidance is not None
    return tuple(SPEC.guidance.scale(asked.params, network) for network in (0, 1))


@pytest.mark.parametrize(
    ("frames", "message"),
    [(80, "use 77 or 81"), (2, "use 1 or 5"), (0, "1 to 253"), (254, "nearest is 253"), (2.5, "not a whole number")],
)
def test_frames_that_the_vae_cannot_make_are_refused_with_the_nearest(door: Door, frames: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as found:
        ask(door, num_frames=frames)
    assert found.value.param == "num_frames"


def test_sizes_are_multiples_of_a_patch_of_latents(kind: str, door: Door) -> None:
    multiple = 32 if kind == "5B" else 16
    assert (door.limits.size_multiple, door.limits.max_side) == (multiple, multiple * 64)
    with pytest.raises(RequestError, match=f"height={multiple + 8} is not a multiple of {multiple}"):
        ask(door, height=multiple + 8)


def test_only_two_experts_take_two_guidance_scales(kind: str, door: Door) -> None:
    if kind == "A14B":
        assert scales(ask(door, guidance_scale_2=2.0)) == (4.0, 2.0)
        return
    with pytest.raises(RequestError, match=r"guidance_scale_2 cannot be chosen here: this checkpoint has one network"):
        ask(door, guidance_scale_2=3.0)


def test_what_makes_no_sense_for_a_video_is_refused(door: Door) -> None:
    with pytest.raises(RequestError, match="true_cfg_scale means nothing to wan"):
        ask(door, true_cfg_scale=4.0)
    with pytest.raises(RequestError, match="fps=0"):
        ask(door, fps=0)


def test_defaults_are_those_of_the_published_checkpoint() -> None:
    large = Door.of(SPEC, configs(boundary_ratio=0.875), "Wan-AI/Wan2.2-T2V-A14B-Diffusers").defaults
    assert (large.num_inference_steps, large.guidance_scale, large.guidance_scale_2) == (40, 4.0, 3.0)
    deep = Door.of(SPEC, configs(), "Wan-AI/Wan2.2-TI2V-5B-Diffusers").defaults
    assert (deep.width, deep.height, deep.num_frames, deep.fps, deep.guidance_scale_2) == (1280, 704, 121, 24.0, None)
    assert Door.of(SPEC, configs(), "somebody/else").defaults == replace(SPEC.defaults, strength=0.8)


PUBLISHED = {
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ({}, {}, (0, 0)),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ({}, {"boundary_ratio": 0.875}, (0, 0)),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ({}, {"expand_timesteps": True}, (0, 1)),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": ({"in_channels": 36, "image_dim": 1280}, {}, (1, 1)),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": (
        {"in_channels": 36, "image_dim": 1280, "pos_embed_seq_len": 514},
        {},
        (2, 2),
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": ({"in_channels": 36}, {"boundary_ratio": 0.9}, (1, 2)),
}
"""Published checkpoints: what their transformer and their index say, and how many pictures they take."""


def published(model: str) -> dict[str, dict[str, object]]:
    transformer, options, _ = PUBLISHED[model]
    found = configs(**options)
    found["transformer"].update(out_channels=16, **transformer)
    return found


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_checkpoint_is_recognised_by_what_it_says_and_takes_its_pictures(model: str) -> None:
    found = published(model)
    assert pictures(found) == PUBLISHED[model][2]
    recognised = SPEC.recognise([], found)
    assert recognised.sure and model in recognised.variant.ids
    assert recognised.why.endswith(("takes no pictures", "one picture", "two pictures"))


@pytest.mark.parametrize(
    ("model", "size", "steps", "guidance"),
    [
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", (832, 480), 50, (5.0, 5.0)),
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", (1280, 720), 50, (5.0, 5.0)),
        ("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", (1280, 720), 50, (5.5, 5.5)),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", (832, 480), 40, (3.5, 3.5)),
    ],
)
def test_defaults_of_checkpoints_for_pictures_are_the_published_ones(
    model: str, size: tuple[int, int], steps: int, guidance: tuple[float, float]
) -> None:
    like = model.replace("I2V-14B-720P", "I2V-14B-480P")  # their networks are alike
    defaults = Door.of(SPEC, published(like), model).defaults
    assert (defaults.width, defaults.height) == size
    assert (defaults.num_inference_steps, defaults.num_frames, defaults.fps) == (steps, 81, 16.0)
    second = defaults.guidance_scale if defaults.guidance_scale_2 is None else defaults.guidance_scale_2
    assert (defaults.guidance_scale, second) == guidance


@pytest.mark.parametrize("model", PUBLISHED)
def test_what_a_checkpoint_does_follows_from_the_pictures_that_it_takes(model: str) -> None:
    door, (least, most) = Door.of(SPEC, published(model), model), PUBLISHED[model][2]
    text, image = ("text-to-video",) if not least else (), ("image-to-video",) if most else ()
    assert door.tasks == text + image + (("video-to-video",) if not most else ())
    few, many = ([picture_of(photo(32, 32))] * count for count in (least, most + 1))
    assert len(door.make_request(Ask({"prompt": "x", "images": few}), 0.0, 1).images) == least
    with pytest.raises(RequestError, match=r"pictures were given; wan takes at most|works from text only"):
        door.make_request(Ask({"prompt": "x", "images": many}), 0.0, 1)
    if least:
        with pytest.raises(RequestError, match=f"0 pictures were given; wan needs at least {least}"):
            door.make_request(Ask("x"), 0.0, 1)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 1000), (1920, 1080), (500, 1501), (31, 64)])
@pytest.mark.parametrize("model", ["Wan-AI/Wan2.2-I2V-A14B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"])
def test_a_video_has_the_proportions_of_its_picture_by_the_rule_of_the_references_example(
    model: str, size: tuple[int, int]
) -> None:
    found = published(model)
    if model.endswith("TI2V-5B-Diffusers"):
        found["vae"].update(scale_factor_spatial=16)
    door = Door.of(SPEC, found, model)
    assert door.defaults.height and door.defaults.width
    area, step, aspect = door.defaults.height * door.defaults.width, door.limits.size_multiple, size[1] / size[0]
    height = round((area * aspect) ** 0.5) // step * step
    width = round((area / aspect) ** 0.5) // step * step
    params = door.make_request(Ask({"prompt": "x", "images": [picture_of(photo(*size))]}), 0.0, 1).params
    assert (params.height, params.width) == (height, width)


def filmed(frames: int = 100, fps: float = 0.0) -> Clip:
    return Clip(64, 32, (photo_of(64, 32),) * frames, fps)


def photo_of(width: int, height: int) -> bytes:
    return picture_of(photo(width, height)).png


def from_video(clip: Clip, **params: Any) -> Request:
    door = Door.of(SPEC, published("Wan-AI/Wan2.1-T2V-14B-Diffusers"), "")
    return door.make_request(Ask({"prompt": "x", "videos": [clip]}, DiffusionParams(**params)), 0.0, 1)


def test_a_changed_video_is_as_fast_and_up_to_the_models_length_as_long_as_the_one_that_was_given() -> None:
    params = from_video(filmed(24, 25.0)).params
    assert (params.num_frames, params.fps, params.strength) == (21, 25.0, 0.8)
    assert (params.width, params.height) == (880, 432)  # the model's own area in the proportions of the video
    params = from_video(filmed(200)).params
    assert (params.num_frames, params.fps) == (81, 16.0)
    params = from_video(filmed(200, 25.0), num_frames=97, fps=8.0).params
    assert (params.num_frames, params.fps) == (97, 8.0)


@pytest.mark.parametrize(("steps", "strength", "drawn"), [(50, 0.8, 40), (4, 0.6, 2), (5, 1.0, 5), (3, 0.4, 1)])
def test_of_a_video_as_many_whole_steps_are_drawn_as_the_strength_holds(
    steps: int, strength: float, drawn: int
) -> None:
    assert from_video(filmed(5), num_inference_steps=steps, strength=strength).steps == drawn


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_frames": 9}, r"num_frames=9 is more than the 5 frames of the video"),
        (
            {"num_inference_steps": 3, "strength": 0.3},
            r"strength=0.3 of 3 steps leaves none to draw; use at least 0.34",
        ),
    ],
)
def test_what_a_video_cannot_give_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_video(filmed(5), **params)


def test_a_video_is_refused_where_none_is_taken_and_a_strength_without_one() -> None:
    of_text = Door.of(SPEC, published("Wan-AI/Wan2.1-T2V-14B-Diffusers"), "")
    with pytest.raises(RequestError, match=r"there is no video; give one \(`videos`\)"):
        of_text.make_request(Ask("x", DiffusionParams(strength=0.5)), 0.0, 1)
    with pytest.raises(RequestError, match="2 videos were given; wan takes at most 1"):
        of_text.make_request(Ask({"prompt": "x", "videos": [filmed(1)] * 2}), 0.0, 1)
    with pytest.raises(RequestError, match="videos must hold clips, got str"):
        of_text.make_request(Ask({"prompt": "x", "videos": ["a.mp4"]}), 0.0, 1)
    timed = Door.of(SPEC, published("Wan-AI/Wan2.2-TI2V-5B-Diffusers"), "")
    assert timed.defaults.strength is None and not timed.masks
    with pytest.raises(RequestError, match="this wan starts from no video; leave out `videos`"):
        timed.make_request(Ask({"prompt": "x", "videos": [filmed(1)]}), 0.0, 1)
    with pytest.raises(RequestError, match="strength cannot be chosen here: this checkpoint starts from no video"):
        timed.make_request(Ask("x", DiffusionParams(strength=0.5)), 0.0, 1)


def test_a_last_frame_needs_more_than_one_frame() -> None:
    door = Door.of(SPEC, published("Wan-AI/Wan2.2-I2V-A14B-Diffusers"), "")
    prompt = {"prompt": "x", "images": [picture_of(photo(32, 32))]}
    with pytest.raises(RequestError, match=r"num_frames=1 is out of range; use 5 to .* nearest is 5"):
        door.make_request(Ask(prompt, DiffusionParams(num_frames=1)), 0.0, 1)
    assert door.make_request(Ask(prompt, DiffusionParams(num_frames=5)), 0.0, 1).params.num_frames == 5


@pytest.mark.parametrize("channels", [17, 32, 52])
def test_a_network_with_other_channels_is_refused(channels: int) -> None:
    found = published("Wan-AI/Wan2.2-I2V-A14B-Diffusers")
    found["transformer"]["in_channels"] = channels
    with pytest.raises(ModelError, match=rf"in_channels={channels} with out_channels=16 is not supported; .* or 36"):
        limits(found)


def test_defaults_are_lowered_to_what_a_checkpoint_can_do() -> None:
    small = configs()
    small["transformer"]["rope_max_seq_len"] = 8
    defaults = Door.of(SPEC, small, "").defaults
    assert (defaults.height, defaults.width, defaults.num_frames) == (128, 128, 29)


def test_a_second_network_needs_a_boundary_and_the_other_way_round() -> None:
    alone = configs()
    alone["transformer_2"] = {}
    with pytest.raises(ModelError, match="boundary_ratio=None and a transformer_2"):
        limits(alone)
    lonely = configs(boundary_ratio=0.9)
    del lonely["transformer_2"]
    with pytest.raises(ModelError, match=r"boundary_ratio=0\.9 and no transformer_2"):
        limits(lonely)


def test_the_first_expert_has_the_boundary_itself() -> None:
    two = configs(boundary_ratio=0.875)
    assert [is_high_noise(two, t) for t in (1000.0, 875.0, 874.9, 0.0)] == [True, True, False, False]
    assert is_high_noise(configs(), 0.0)
    two["scheduler"]["num_train_timesteps"] = 100
    assert is_high_noise(two, 87.5)


def test_each_expert_is_guided_by_its_own_scale() -> None:
    assert scales(request()) == (5.0, 5.0)
    assert scales(request(guidance_scale=1.0, guidance_scale_2=3.0)) == (1.0, 3.0)
    asked = [request(guidance_scale=a, guidance_scale_2=b) for a, b in ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0))]
    assert [len(each.branches) for each in asked] == [1, 2, 2]


def test_latents_and_tokens_are_counted_as_the_vae_and_the_patches_say() -> None:
    assert latent_shape(configs(), request()) == (16, 21, 60, 104)
    assert video_tokens(configs(), request()) == 21 * 30 * 52
    deep = configs()
    deep["vae"].update(scale_factor_spatial=16, scale_factor_temporal=4)
    deep["transformer"].update(in_channels=48)
    assert latent_shape(deep, request(height=704, width=1280, num_frames=121)) == (48, 31, 44, 80)


@pytest.mark.parametrize(
    "text", ["a  red\n\tcircle ", "salt &amp;amp; pepper", "", "\u3000wide\xa0blank\x1c", "1 &lt; 2", "Tom & Jerry"]
)
def test_prompts_are_cleaned_as_the_reference_does(text: str) -> None:
    assert clean(None, text) == prompt_clean(text)


def test_the_spec_can_be_read_without_torch(tmp_path: Path) -> None:
    script = "import sys, omnimuse.models.wan.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0
