"""What is read from the source of the library's classes, and what a checkpoint's configurations make of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from omnimuse.compat.diffusers.params import core_parameters, extra_parameters, extra_type, picture_parameters
from omnimuse.compat.diffusers.sizes import default_side, size_multiple
from omnimuse.compat.diffusers.source import UNKNOWN, read_source
from omnimuse.compat.diffusers.spec import playing_speed
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import FamilyParams, family_params

EXPORTED = [
    name
    for name in dir(diffusers)
    if name.endswith("Pipeline") and not re.match("Auto|Diffusion|Versatile|.*(Onnx|Flax|Modular)", name)
]


@pytest.mark.costly
def test_every_pipeline_that_the_library_exports_can_be_read() -> None:
    assert len(EXPORTED) > 200
    for arch in EXPORTED:
        source = read_source(arch)
        assert len({*core_parameters(source), *(p.name for p in picture_parameters(source))}) > 0 or source.parameters
        family = extra_type(source)
        if not any(parameter.required for parameter in extra_parameters(source)):
            assert isinstance(family(), FamilyParams), arch


@pytest.mark.parametrize("arch", ["VersatileDiffusionPipeline", "DiffusionPipeline", "AutoPipelineForText2Image"])
def test_a_class_that_cannot_be_called_is_named(arch: str) -> None:
    with pytest.raises(ModelError, match=f"{arch} is no pipeline that can be called"):
        read_source(arch)


def test_reading_a_class_imports_neither_torch_nor_the_library() -> None:
    program = (
        "import sys\nfrom omnimuse.compat.diffusers.spec import read_source\nread_source('SanaPipeline')\n"
        "sys.exit(str({'torch', 'diffusers'} & set(sys.modules)) if {'torch', 'diffusers'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_types_defaults_and_documentation_come_from_the_signature() -> None:
    source = read_source("StableDiffusionXLPipeline")
    eta = source.parameters["eta"]
    assert (eta.annotation, eta.default, eta.required) == ("float", 0.0, False)
    assert eta.about.startswith("Corresponds to parameter eta")
    assert read_source("StableDiffusionImg2ImgPipeline").parameters["callback_on_step_end"].default is None
    assert read_source("DiTPipeline").parameters["class_labels"].default is UNKNOWN


@pytest.mark.parametrize(
    ("arch", "medium", "hook", "latents"),
    [
        ("StableDiffusion3Pipeline", "image", "callback_on_step_end", True),
        ("LTXPipeline", "video", "callback_on_step_end", True),
        ("LTX2Pipeline", "video", "callback_on_step_end", True),
        ("HunyuanVideo15Pipeline", "video", "progress_bar", False),
        ("StableAudioPipeline", "audio", "callback", True),
        ("KandinskyV22PriorPipeline", None, "callback_on_step_end", True),
    ],
)
def test_the_medium_and_the_way_to_stop_between_steps_are_told(
    arch: str, medium: str | None, hook: str, latents: bool
) -> None:
    source = read_source(arch)
    assert (source.medium, source.hook, source.shows_latents) == (medium, hook, latents)


def test_an_unknown_class_is_told_with_the_closest_one() -> None:
    with pytest.raises(ModelError, match="the closest that it has is SanaPipeline"):
        read_source("SanaaPipeline")


@pytest.mark.parametrize(
    ("arch", "configs", "side", "multiple"),
    [
        (
            "StableDiffusion3Pipeline",
            {"transformer": {"sample_size": 128, "patch_size": 2}, "vae": {"block_out_channels": [1, 2, 3, 4]}},
            1024,
            16,
        ),
        ("StableDiffusionPipeline", {"unet": {"sample_size": 64}, "vae": {"block_out_channels": [1, 2, 3, 4]}}, 512, 8),
        (
            "StableDiffusionXLPipeline",
            {"unet": {"sample_size": 128}, "vae": {"block_out_channels": [1, 2, 3, 4]}},
            1024,
            8,
        ),
        ("Lumina2Pipeline", {"transformer": {"sample_size": 64}, "vae": {}}, 512, 16),
        ("SanaPipeline", {}, 1024, 32),
        ("LTXPipeline", {}, 512, 32),
        ("HunyuanVideo15Pipeline", {"vae": {"spatial_compression_ratio": 16}}, None, 16),
        ("StableDiffusion3Pipeline", {}, 1024, 16),
        ("StableAudioPipeline", {}, None, 8),
    ],
)
def test_sizes_are_computed_from_the_class_and_the_configurations(
    arch: str, configs: dict[str, dict[str, object]], side: int | None, multiple: int
) -> None:
    source = read_source(arch)
    assert (default_side(source, configs, "height"), size_multiple(source, configs)) == (side, multiple)


@pytest.mark.parametrize(
    ("arch", "needed"),
    [
        ("StableDiffusionPipeline", []),
        ("StableDiffusionImg2ImgPipeline", ["image"]),
        ("StableDiffusionInpaintPipeline", ["image", "mask_image"]),
        ("LTXImageToVideoPipeline", ["image"]),
        ("StableVideoDiffusionPipeline", ["image"]),
        ("QwenImageEditPipeline", []),
    ],
)
def test_the_pictures_that_a_class_needs_are_those_that_it_does_not_call_optional(arch: str, needed: list[str]) -> None:
    assert [each.name for each in picture_parameters(read_source(arch)) if each.needed] == needed


def test_every_kind_of_parameter_goes_where_it_belongs() -> None:
    source = read_source("StableDiffusionXLInpaintPipeline")
    assert [p.name for p in picture_parameters(source)] == ["image", "mask_image"]
    assert core_parameters(source)["guidance_scale"] == "guidance_scale"
    extra = {p.name for p in extra_parameters(source)}
    assert {"prompt_2", "original_size", "eta", "padding_mask_crop"} <= extra
    tensors = {"latents", "prompt_embeds", "ip_adapter_image", "generator", "masked_image_latents"}
    machinery = {"callback_on_step_end", "return_dict", "output_type", "num_images_per_prompt"}
    assert not extra & (tensors | machinery)
    assert core_parameters(read_source("LTXPipeline"))["frame_rate"] == "fps"


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("original_size", [64, 64], (64, 64)),
        ("eta", 1, 1),
        ("prompt_2", "stars", "stars"),
        ("sigmas", [1.0, 0.5], [1.0, 0.5]),
        ("cross_attention_kwargs", {"scale": 0.5}, {"scale": 0.5}),
        ("clip_skip", None, None),
    ],
)
def test_a_value_that_fits_is_kept_as_the_library_wants_it(name: str, given: object, kept: object) -> None:
    family = extra_type(read_source("StableDiffusionXLPipeline"))
    assert getattr(family_params(family, {name: given}), name) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eta": "high"}, "extra.eta='high' does not fit this model; give float"),
        ({"eta": True}, "extra.eta=True does not fit"),
        ({"clip_skip": 1.5}, "extra.clip_skip=1.5 does not fit this model; give int"),
        ({"original_size": [64]}, r"extra.original_size=\(64,\) does not fit this model; give tuple\[int, int\]"),
        ({"sigmas": ["a"]}, "extra.sigmas"),
        ({"guidance_rescal": 0.5}, "did you mean 'guidance_rescale'"),
        ({"latents": [0.0]}, "extra has no field 'latents'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, object], message: str) -> None:
    family = extra_type(read_source("StableDiffusionXLPipeline"))
    with pytest.raises(RequestError, match=message):
        family_params(family, given)


def test_a_parameter_without_a_default_must_be_given() -> None:
    family = extra_type(read_source("BlipDiffusionPipeline"))
    with pytest.raises(RequestError, match="must be given"):
        family()


def test_videos_play_as_fast_as_their_class_or_its_example_says() -> None:
    speeds = {arch: playing_speed(read_source(arch)) for arch in ("LTXPipeline", "HunyuanVideo15Pipeline")}
    assert speeds == {"LTXPipeline": 25.0, "HunyuanVideo15Pipeline": 15.0}


def test_the_library_is_read_where_it_is_installed() -> None:
    assert Path(str(diffusers.__file__)).parent.joinpath("pipelines", "__init__.py").is_file()


@pytest.mark.parametrize(
    ("arch", "media"),
    [
        ("LTX2Pipeline", {"video": 0, "audio": 1}),
        ("StableDiffusionPipeline", {"image": 0}),
        ("LongCatAudioDiTPipeline", {"audio": 0}),
    ],
)
def test_every_medium_that_comes_out_is_told_and_where(arch: str, media: dict[str, int]) -> None:
    assert read_source(arch).media == media
