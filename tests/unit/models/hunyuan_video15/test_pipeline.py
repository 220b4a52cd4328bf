"""HunyuanVideo-1.5: sizes, words in quotes and the guider, as the reference has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.hunyuan_video1_5.image_processor import generate_crop_size_list, get_closest_ratio
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline, extract_glyph_texts

from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door
from omnimuse.media.picture import picture_of
from omnimuse.models.hunyuan_video15.pipeline import SYSTEM, filled, glyphs
from omnimuse.models.hunyuan_video15.spec import SPEC, learned_size
from tests.checkpoints.wishes import photo

VAE = {"spatial_compression_ratio": 16, "temporal_compression_ratio": 4}
PICTURES = {"image_encoder": {}}
FEW = {"transformer": {"target_size": 640, "use_meanflow": True}}


def door(guider: dict[str, Any] | None = None, target: int = 640, **more: Any) -> Door:
    """That of a checkpoint with these options of its guider."""
    configs = {"options": {}, "vae": VAE, "transformer": {"target_size": target}, "scheduler": {}, **more}
    configs["guider"] = {"_class_name": "ClassifierFreeGuidance", **(guider or {"guidance_scale": 6.0})}
    return Door.of(SPEC, configs, SPEC.recognise([], configs).variant)


@pytest.mark.parametrize("target", [64, 640, 960])
def test_a_picture_makes_a_video_of_the_size_that_the_reference_finds(target: int) -> None:
    sizes = generate_crop_size_list(target, 16)
    ratios = np.array([round(float(high) / float(wide), 5) for high, wide in sizes])
    for width, height in [(16, 9), (9, 16), (1, 1), (100, 99), (99, 100), (1000, 10), (10, 1000), (1333, 750)]:
        high, wide = get_closest_ratio(height, width, ratios, sizes)[0]
        assert learned_size(target, 16, [(width, height)]) == (wide, high)


@pytest.mark.parametrize(
    "prompt",
    ["none", 'a "sign"', '"a", “b” and "a"', '""', 'an " alone', '“curved” before "straight"', 'over\n"two\nlines"'],
)
def test_the_words_in_quotes_are_found_as_in_the_reference(prompt: str) -> None:
    assert glyphs(prompt) == extract_glyph_texts(prompt)


def test_the_language_model_is_told_what_the_reference_tells_it() -> None:
    assert SYSTEM in HunyuanVideo15Pipeline._get_mllm_prompt_embeds.__defaults__  # type: ignore[operator]


@pytest.mark.parametrize(
    ("guider", "scale"),
    [
        ({"guidance_scale": 6.0}, 6.0),
        ({}, 6.0),
        ({"guidance_scale": 4.5}, 4.5),
        ({"guidance_scale": 6.0, "enabled": False}, 1.0),
        ({"guidance_scale": 1.0}, 1.0),
    ],
)
def test_the_scale_is_that_of_the_checkpoints_guider_unless_one_is_chosen(guider: dict[str, Any], scale: float) -> None:
    asked = door(guider).make_request(Ask("a"), 0.0, 1)
    assert asked.params.guidance_scale == scale
    assert len(asked.branches) == (2 if scale > 1 else 1)
    assert door(guider).make_request(Ask("a", DiffusionParams(guidance_scale=3.0)), 0.0, 1).params.guidance_scale == 3


@pytest.mark.parametrize("option", [{"guidance_rescale": 0.5}, {"start": 0.1}, {"stop": 0.9}, {"zero_init_steps": 1}])
def test_a_guider_that_guides_in_another_way_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"guider/guider_config.json.*{next(iter(option))}"):
        door(option)


@pytest.mark.parametrize(
    ("target", "more", "guider", "name", "size"),
    [
        (640, {}, {"guidance_scale": 6.0}, "480p_t2v", (848, 480)),
        (960, {}, {"guidance_scale": 6.0}, "720p_t2v", (1280, 720)),
        (640, {}, {"enabled": False}, "480p_t2v_distilled", (848, 480)),
        (960, PICTURES, {"guidance_scale": 1.0}, "720p_i2v_distilled", (1280, 720)),
        (640, PICTURES | FEW, {"guidance_scale": 1.0}, "480p_i2v_step_distilled", (848, 480)),
    ],
)
def test_a_checkpoint_is_recognised_by_what_it_says(
    target: int, more: dict[str, Any], guider: dict[str, Any], name: str, size: tuple[int, int]
) -> None:
    configs: dict[str, Any] = {"vae": VAE, "transformer": {"target_size": target}, "guider": guider, **more}
    found = SPEC.recognise([], configs)
    assert (found.variant.name, found.sure) == (f"HunyuanVideo-1.5-{name}", True)
    opened = door(guider, target, **more)
    assert (opened.defaults.width, opened.defaults.height) == size
    assert opened.tasks == (("image-to-video",) if more else ("text-to-video",))


@pytest.mark.parametrize("size", [(70, 50), (31, 90), (64, 64), (200, 20)])
def test_a_picture_is_cut_to_the_size_of_the_video_as_in_the_reference(size: tuple[int, int]) -> None:
    from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor

    opened = door(target=64, **PICTURES)
    asked = opened.make_request(Ask({"prompt": "a", "images": [picture_of(photo(*size))]}), 0.0, 1)
    width, height = learned_size(64, 16, [size])
    assert (asked.params.width, asked.params.height) == (width, height)
    resized = HunyuanVideo15ImageProcessor(do_resize=False).resize(photo(*size), height, width, resize_mode="crop")
    assert filled({}, asked, asked.images[0]).tobytes() == resized.tobytes()
