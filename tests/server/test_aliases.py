"""What clients' fields mean: one meaning each, nothing dropped in silence; and the requests that come of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Door, Request
from omnimuse.core.spec import Foreign, Limits, SoundLimits
from omnimuse.server.errors import CODES, ApiError, to_api_error
from omnimuse.server.protocol.chat import ChatRequest
from omnimuse.server.protocol.images import ImageRequest
from omnimuse.server.translate import fields as table
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.asks import (
    patience,
    preview_period,
    preview_steps,
    renamed,
    settled,
    to_form,
    to_request,
)
from omnimuse.worker.find import find


@pytest.fixture(scope="module")
def door() -> Door:
    return find(Config(ModelConfig("omnimuse/shapes"))).door


@pytest.fixture(scope="module")
def videos(door: Door) -> Door:
    """A door of a model of videos: 4k + 1 frames, at most 81, 16 a second."""
    limits = Limits(size_multiple=16, max_side=1024, max_sequence_length=512, frame_step=4, max_frames=81)
    supported = door.spec.supported | {"num_frames", "fps"}
    spec = replace(door.spec, tasks=("text-to-video",), supported=supported)
    return Door(spec, limits, DiffusionParams(num_frames=81, fps=16.0).over(door.defaults))


def ask(
    door: Door, kind: table.Kind = "image", form: bool = False, files: tuple[str, ...] = (), **given: Any
) -> Request:
    """The request that fields (and a prompt) make."""
    return to_request(read({"prompt": "a red circle", **given}, kind, door, form=form, files=files), door)


def refused(door: Door, kind: table.Kind = "image", form: bool = False, **given: Any) -> ApiError:
    """The error that fields (and a prompt) end in, as a client sees it."""
    with pytest.raises((ApiError, RequestError)) as caught:
        ask(door, kind, form, **given)
    error = to_api_error(caught.value)
    assert error.status == 400
    assert error.code in CODES
    return error


# -- what is understood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": "64x96"}, {"width": 64, "height": 96}),
        ({"size": "auto"}, {"width": 128, "height": 128}),
        ({"size": ""}, {"width": 128, "height": 128}),
        *(({"size": f"64{by}96"}, {"width": 64, "height": 96}) for by in ("X", "*", "×", " x ")),
        ({"resolution": "64*96"}, {"width": 64, "height": 96}),
        ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
        ({"size": "100x75", "adjust": True}, {"width": 96, "height": 80}),
        ({"size": "adjust", "width": 9999, "height": 1}, {"width": 1024, "height": 16}),
        ({"width": 64}, {"width": 64, "height": 128}),
        ({"resolution": 64}, {"width": 64, "height": 64}),
        ({"resolution": "64x96"}, {"width": 64, "height": 96}),
        ({"size": "64x96", "width": 64, "height": 96}, {"width": 64, "height": 96}),
        ({"n": 3}, {"num_outputs_per_prompt": 3}),
        ({"num_outputs_per_prompt": 3, "n": 3}, {"num_outputs_per_prompt": 3}),
        ({"seed": 7, "num_inference_steps": 4, "guidance_scale": 2}, {"seed": 7, "num_inference_steps": 4}),
        ({"seed": None, "n": None, "size": None}, {"num_outputs_per_prompt": 1}),
        ({"flow_shift": 2, "scheduler": "UniPC"}, {"flow_shift": 2.0, "scheduler": "unipc"}),
        ({"cache": "teacache"}, {"cache": "teacache,threshold=0.15,warm_up=1"}),
        ({"enable_teacache": True}, {"cache": "teacache,threshold=0.15,warm_up=1"}),
        ({"enable_cache_dit": True}, {"cache": "dbcache,threshold=0.24,first=1,last=0,warm_up=4,in_a_row=3"}),
        (
            {"enable_cache_dit": True, "cache_dit_params": {"Fn_compute_blocks": 2, "enable_taylorseer": True}},
            {"cache": "dbcache,threshold=0.24,first=2,last=0,warm_up=4,in_a_row=3,order=1"},
        ),
        ({"enable_cache_dit": False, "enable_teacache": False}, {"cache": None}),
        ({"quality": "low"}, {"num_inference_steps": 5}),
        ({"quality": "hd"}, {"num_inference_steps": 15}),
        ({"quality": "HIGH"}, {"num_inference_steps": 15}),
        ({"quality": "maximum"}, {"num_inference_steps": 30}),
        ({"quality": "default", "num_inference_steps": 4}, {"num_inference_steps": 4}),
        ({"quality": "standard", "num_inference_steps": 4}, {"num_inference_steps": 4}),
    ],
)
def test_fields_of_every_client_become_our_parameters(
    door: Door, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = ask(door, **given).params
    assert {name: getattr(params, name) for name in expected} == expected


def test_the_family_s_own_parameters_go_into_extra_params(door: Door) -> None:
    request = ask(door, extra_params={"cfg_truncation": 1})
    assert request.extra == door.spec.extra(cfg_truncation=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u-1", "safety_identifier": "s", "moderation": "low", "background": "opaque"},
        {"enable_teacache": False, "vae_use_tiling": False, "rollout": False, "rollout_sde_type": "sde"},
        {"generator_device": "cpu", "output_quality": "default", "num_frames": 1, "infer_align_image_size": False},
        {"response_format": "b64_json", "stream": False, "partial_images": 0, "progress": False},
        {"style": "vivid", "generator_device": "cuda", "output_format": "PNG", "output_quality": "maximum"},
        {"style": "natural", "output_compression": 100, "enable_upscaling": False, "svg": False, "loras": []},
        {"true_cfg_scale": 1.0, "guidance_scale_2": 1, "style": "", "quality": "", "mask": None},
    ],
)
def test_values_that_ask_for_nothing_are_accepted(door: Door, harmless: dict[str, Any]) -> None:
    assert ask(door, seed=1, **harmless).params == ask(door, seed=1).params


def test_a_scale_that_a_model_does_not_take_is_accepted_at_what_is_used_anyway(door: Door, videos: Door) -> None:
    fixed = DiffusionParams(guidance_scale=0.0)
    distilled = replace(
        door, limits=replace(door.limits, fixed=fixed), defaults=DiffusionParams(guidance_scale=0.0).over(door.defaults)
    )
    for scale in (0.0, 1.0):
        assert ask(distilled, guidance_scale=scale).params.guidance_scale == 0.0
    assert refused(distilled, guidance_scale=3.5).param == "guidance_scale"
    for given in ({"guidance_scale": 4.5, "guidance_scale_2": 4.5}, {"guidance_scale_2": door.defaults.guidance_scale}):
        assert ask(videos, "video", **given).params.guidance_scale_2 is None
    assert refused(videos, "video", guidance_scale=4.5, guidance_scale_2=4.0).param == "guidance_scale_2"


def test_a_seed_of_minus_one_is_chosen_and_so_is_one_of_a_form(door: Door) -> None:
    seeds = {ask(door, seed=-1).params.seed, ask(door, form=True, seed="-1").params.seed, ask(door).params.seed}
    assert len(seeds) == 3 and all(seed is not None and seed >= 0 for seed in seeds)


def test_what_was_changed_or_means_something_else_elsewhere_is_told(door: Door, videos: Door) -> None:
    def told(on: Door, kind: table.Kind, **given: Any) -> tuple[str, ...]:
        return settled(read({"prompt": "x", **given}, kind, on), on).warnings

    assert told(door, "image", size="64x64", style="vivid", generator_device="cpu", adjust=True) == ()
    [style, device] = told(door, "image", style="natural", generator_device="cuda")
    assert "describe it in the prompt" in style and "CPU" in device
    assert told(door, "image", size="100x64", adjust=True) == (
        "width=100 became 96, the nearest that this model makes",
    )
    [frames] = told(videos, "video", seconds=60, adjust=True)
    assert frames == "num_frames=961 became 81, the nearest that this model makes"
    assert ask(videos, "video", num_frames=35, adjust=True).params.num_frames == 33


def test_a_model_that_is_left_empty_or_called_default_is_the_one_there_is(door: Door) -> None:
    assert [read({"prompt": "x", "model": name}, "image", door).model for name in ("", "default", "a")] == [
        None,
        None,
        "a",
    ]


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ({"image": "data:,a"}, ("data:,a",)),
        ({"image": ["data:,a", {"image_url": "data:,b"}]}, ("data:,a", "data:,b")),
        ({"images": [{"image_url": "data:,a"}], "url": "data:,b"}, ("data:,a", "data:,b")),
        ({"image": {"url": "data:,a"}}, ("data:,a",)),
        ({"image": {"image_url": {"url": "data:,a"}}}, ("data:,a",)),
    ],
)
def test_pictures_of_an_edit_may_come_in_json(door: Door, given: dict[str, Any], urls: tuple[str, ...]) -> None:
    assert read({"prompt": "x", **given}, "edit", door).urls == urls


@pytest.mark.parametrize("given", [{"image": [{"file_id": "x"}]}, {"image": 3}, {"images": [["data:"]]}, {"image": {}}])
def test_a_picture_that_is_nowhere_is_refused(door: Door, given: dict[str, Any]) -> None:
    if given != {"image": {}}:
        with pytest.raises(ApiError, match="an upload, a data: URL"):
            read({"prompt": "x", **given}, "edit", door)
    blind = replace(door, limits=replace(door.limits, max_images=0))
    with pytest.raises(ApiError, match="text only"):
        read({"prompt": "x", "image": "data:,a"}, "edit", blind)


def test_the_file_asked_for_is_the_form_of_the_output(door: Door) -> None:
    def form(**given: Any) -> tuple[str, int | None]:
        made = to_form(read({"prompt": "x", **given}, "image", door))
        return made.format, made.quality

    assert form() == ("PNG", None)
    assert form(output_format="jpeg", output_compression=40) == ("JPEG", 40)
    assert form(output_format="webp", output_compression=0) == ("WEBP", 1)
    assert form(output_format="jpg", output_quality="medium") == ("JPEG", 55)


def test_background_true_is_a_job_and_a_word_is_the_picture_s_background(door: Door) -> None:
    assert read({"prompt": "x", "background": True}, "image", door).delivery.durable
    wanted = read({"prompt": "x", "background": "opaque"}, "image", door)
    assert not wanted.delivery.durable
    assert wanted.output.background == "opaque"


def test_text_of_a_form_is_read_as_the_field_s_type(door: Door) -> None:
    given = {"seed": "7", "guidance_scale": "2.5", "size": "64x64", "enable_teacache": "false"}
    params = ask(door, form=True, n="", extra_params={"cfg_truncation": "0.5"}, **given).params
    assert (params.seed, params.guidance_scale, params.width) == (7, 2.5, 64)
    assert read({"prompt": "x", "stream": "true"}, "image", door, form=True).delivery.stream


def test_json_text_is_no_number_and_json_true_is_no_number(door: Door) -> None:
    for value in ("7", True, 1.5, [7]):
        assert refused(door, seed=value).param == "seed"
    assert refused(door, guidance_scale=True).param == "guidance_scale"
    assert refused(door, stream=1).param == "stream"
    assert refused(door, enable_teacache=0).code == "invalid_value"


def test_a_chat_takes_the_fields_of_vllm_omni_at_the_top_or_in_extra_body(door: Door) -> None:
    messages = [{"role": "user", "content": "x"}]
    top = read({"messages": messages, "seed": 3, "num_outputs_per_prompt": 2}, "chat", door)
    nested = read({"messages": messages, "extra_body": {"seed": 3, "num_outputs_per_prompt": 2}}, "chat", door)
    assert top.params == nested.params
    assert not top.delivery.split
    assert read({"messages": messages, "n": 2}, "chat", door).delivery.split
    for body, param in (({"sed": 3}, "extra_body.sed"), ({"extra_body": {}}, "extra_body")):
        with pytest.raises(ApiError) as caught:
            read({"messages": messages, "extra_body": body}, "chat", door)
        assert caught.value.param == param


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code", "param", "said"),
    [
        ({"promt": 1}, "unknown_parameter", "promt", "did you mean 'prompt'"),
        ({"num_infernce_steps": 1}, "unknown_parameter", "num_infernce_steps", "'num_inference_steps'"),
        ({"cfg_truncation": 1}, "unknown_parameter", "cfg_truncation", "extra_params"),
        ({"extra_params": {"cfg_truncatoin": 1}}, "unknown_parameter", "extra_params.cfg_truncatoin", "cfg_truncation"),
        ({"extra_params": {"cfg_truncation": "x"}}, "invalid_value", "extra_params.cfg_truncation", "a number"),
        ({"true_cfg_scale": 2.0}, "unsupported_parameter", "true_cfg_scale", "honours cache, flow_shift"),
        ({"strength": 0.5}, "invalid_value", "strength", "no picture"),
        ({"strength": "much"}, "invalid_value", "strength", "a number"),
        ({"lora": {}}, "invalid_value", "lora", "an adapter has one name, perhaps"),
        ({"lora": False}, "invalid_value", "lora", "lora=false is not allowed; use a name"),
        ({"lora": {"name": "../../x"}}, "invalid_value", "lora", "no adapter '../../x' here; none is registered"),
        ({"loras": 7}, "invalid_value", "loras", "a list of at most 16"),
        ({"lora": {"name": "x", "scale": "much"}}, "invalid_value", "lora", "the scale 'much'"),
        ({"quantize": "int8"}, "unsupported_parameter", "quantize", "for all requests: `omnimuse serve MODEL --quant"),
        ({"attention_backend": "sdpa"}, "unsupported_parameter", "attention_backend", "serve MODEL --attention`"),
        ({"quantization": "fp8"}, "unsupported_parameter", "quantization", "--quantize int8"),
        ({"dtype": "float32"}, "unsupported_parameter", "dtype", "serve MODEL --dtype`"),
        ({"lora": {"name": "x", "scael": 1}}, "invalid_value", "lora", "one name, perhaps a scale"),
        ({"lora": {"path": "x", "name": "x"}}, "invalid_value", "lora", "this one has path and name"),
        ({"vae_use_tiling": True}, "unsupported_parameter", "vae_use_tiling", "when the server starts"),
        ({"cache": "teacach"}, "invalid_value", "cache", "did you mean 'teacache'"),
        ({"cache": "magcache"}, "invalid_value", "cache", "omnimuse calibrate"),
        ({"enable_teacache": True, "cache": "fast"}, "conflicting_parameters", "enable_teacache", "both choose"),
        ({"cache_dit_params": {"Fn_blocks": 1}}, "invalid_value", "cache_dit_params", "'Fn_compute_blocks'"),
        ({"cache_dit_params": {"warmup_interval": 2}}, "invalid_value", "cache_dit_params", "warmup_interval=2"),
        (
            {"enable_cache_dit": False, "cache_dit_params": {"Fn_compute_blocks": 2}},
            *("conflicting_parameters", "cache_dit_params", "enable_cache_dit=true only"),
        ),
        ({"output_path": "/etc/passwd"}, "unsupported_parameter", "output_path", "never names files"),
        ({"url": "http://169.254.169.254/"}, "unsupported_parameter", "url", "/v1/images/edits"),
        ({"style": "baroque"}, "invalid_value", "style", "vivid, natural"),
        ({"steps": 4}, "unknown_parameter", "steps", "did you mean 'num_inference_steps'"),
        ({"cfg_scale": 4}, "unknown_parameter", "cfg_scale", "did you mean 'guidance_scale'"),
        ({"sampler_name": "ddim"}, "unknown_parameter", "sampler_name", "did you mean 'scheduler'"),
        ({"enhance_prompt": True}, "unsupported_parameter", "enhance_prompt", "never rewritten"),
        ({"enable_upscaling": True}, "unsupported_parameter", "enable_upscaling", "larger `size`"),
        ({"background": "transparent"}, "unsupported_parameter", "background", "opaque"),
        ({"output_format": "gif"}, "invalid_value", "output_format", "png, jpeg"),
        ({"n": 0}, "invalid_value", "n", "from 1 to 10"),
        ({"n": 11}, "invalid_value", "n", "from 1 to 10"),
        ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps", "1 to 10000"),
        ({"num_inference_steps": 10**9}, "invalid_value", "num_inference_steps", "1 to 10000"),
        ({"num_inference_steps": 10**400}, "invalid_value", "num_inference_steps", "too many digits"),
        ({"guidance_scale": 1e308}, "invalid_value", "guidance_scale", "0 to 1000"),
        ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale", "number"),
        ({"guidance_scale": 10**400}, "invalid_value", "guidance_scale", "number"),
        ({"scheduler": "ddim"}, "invalid_value", "scheduler", "euler, heun, unipc"),
        ({"flow_shift": 0}, "invalid_value", "flow_shift", "0.01 to 100"),
        ({"boundary_ratio": 0.9}, "unsupported_parameter", "boundary_ratio", "honours cache, flow_shift"),
        ({"seed": 2**70}, "invalid_value", "seed", "0 to "),
        ({"seed": -2}, "invalid_value", "seed", "0 to "),
        ({"seed": 2**64}, "invalid_value", "seed", "0 to "),
        ({"timeout_s": 0}, "invalid_value", "timeout_s", "above 0, at most 1e+09"),
        ({"timeout_s": -1}, "invalid_value", "timeout_s", "above 0, at most 1e+09"),
        ({"deadline": -0.5}, "invalid_value", "deadline", "above 0, at most 1e+09"),
        ({"deadline": "soon"}, "invalid_value", "deadline", "one of batch, interactive"),
        ({"deadline": True}, "invalid_value", "deadline", "a number"),
        ({"deadline": 3, "timeout_s": 4}, "conflicting_parameters", "timeout_s", "deadline=3"),
        ({"size": "axb"}, "invalid_value", "size", "WIDTHxHEIGHT"),
        ({"size": "64x64x3"}, "invalid_value", "size", "WIDTHxHEIGHT"),
        ({"size": "0x0"}, "invalid_value", "size", "16 to 1024"),
        ({"size": "-1x5"}, "invalid_value", "size", "WIDTHxHEIGHT"),
        ({"size": "99999999x99999999"}, "invalid_value", "size", "WIDTHxHEIGHT"),
        ({"size": "100x64"}, "invalid_value", "size", "96 or 112"),
        ({"size": "64x64", "width": 80}, "conflicting_parameters", "width", "size=64"),
        ({"size": "64x64", "resolution": 128}, "conflicting_parameters", "resolution", "size=64"),
        ({"n": 2, "num_outputs_per_prompt": 3}, "conflicting_parameters", "num_outputs_per_prompt", "n=2"),
        ({"quality": "high", "num_inference_steps": 3}, "conflicting_parameters", "quality", "steps"),
        ({"output_compression": 50}, "conflicting_parameters", "output_compression", "jpeg and webp"),
        ({"partial_images": 2}, "conflicting_parameters", "partial_images", "stream"),
        ({"partial_images": 4, "stream": True}, "invalid_value", "partial_images", "from 0 to 3"),
        ({"stream": True, "response_format": "url"}, "conflicting_parameters", "response_format", "stream"),
        ({"stream": True, "response_format": "file"}, "conflicting_parameters", "response_format", "stream"),
        ({"background": True, "response_format": "file"}, "conflicting_parameters", "response_format", "JSON"),
        ({"stream": True, "background": True}, "conflicting_parameters", "background", "stream"),
        ({"negative_prompt": "x", "guidance_scale": 0}, "invalid_value", "negative_prompt", "guidance_scale is 0"),
        ({"prompt": " "}, "invalid_value", "prompt", "empty"),
        ({"prompt": None}, "missing_parameter", "prompt", "missing"),
        ({"prompt": ["a"]}, "invalid_value", "prompt", 'prompt=["a"] is not allowed; use a string'),
        ({"seed": [1, {"a": None}]}, "invalid_value", "seed", 'seed=[1, {"a": null}] is not allowed'),
        ({"seed": {"ü": True}}, "invalid_value", "seed", 'seed={"ü": true} is not allowed'),
        ({"seed": ["x" * 100_000] * 9}, "invalid_value", "seed", 'seed=["' + "x" * 55 + "... is not allowed"),
        ({"seed": [0] * 1_000_000}, "invalid_value", "seed", "seed=[" + "0, " * 18 + "0,... is not allowed"),
        ({"prompt": "x" * 32_001}, "invalid_value", "prompt", "32000"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_name_and_what_is_allowed(
    door: Door, given: dict[str, Any], code: str, param: str, said: str
) -> None:
    error = refused(door, **given)
    assert (error.code, error.param) == (code, param)
    assert said in error.message


@pytest.mark.parametrize("entry", [e for e in table.TABLE["image"] if not e.target], ids=lambda entry: entry.name)
def test_every_field_that_is_not_honoured_is_refused_with_its_reason(door: Door, entry: table.Field) -> None:
    error = refused(door, **{entry.name: "something"})
    assert error.code == "unsupported_parameter"
    assert entry.note in error.message


@pytest.mark.parametrize("kind", get_args(table.Kind))
def test_every_row_of_the_table_has_a_reason_and_stands_once(kind: table.Kind) -> None:
    rows = table.TABLE[kind]
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.note for row in rows)
    assert all(row.allowed for row in rows if row.shape in ("choice", "background"))
    assert not [row.name for row in rows if row.neutral and row.target]


@pytest.mark.parametrize("kind", get_args(table.Kind))
def test_no_field_that_is_honoured_names_a_place_on_the_server(kind: table.Kind) -> None:
    honoured = [row.name for row in table.TABLE[kind] if row.target]
    assert not [name for name in honoured if any(word in name.split("_") for word in ("path", "dir", "folder"))]


def test_uploads_are_refused_where_a_model_works_from_text_only(door: Door) -> None:
    able, door = door, replace(door, limits=replace(door.limits, max_images=0))
    with pytest.raises(ApiError, match="text only") as caught:
        read({"prompt": "x"}, "edit", door, form=True, files=["image"])
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "image")
    with pytest.raises(ApiError, match="did you mean 'image'") as caught:
        read({"prompt": "x"}, "edit", door, form=True, files=["imge"])
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(ApiError, match="no upload") as caught:
        read({"prompt": "x"}, "edit", door, form=True, files=["prompt"])
    assert read({"prompt": "x"}, "edit", able, form=True, files=["image", "reference_image"]).prompt == "x"


@pytest.mark.parametrize(
    ("kind", "field", "ours"),
    [
        *(
            (kind, entry.name, "images")
            for kind in ("edit", "video")
            for entry in table.TABLE[kind]
            if "urls" in entry.target
        ),
        *(("speech", entry.name, "sounds") for entry in table.TABLE["speech"] if entry.target == "urls"),
        *(
            (kind, entry.name, entry.target.replace("masks", "mask"))
            for kind in ("edit", "video", "audio", "hearing")
            for entry in table.TABLE[kind]
            if entry.target in ("sounds", "videos", "mask", "masks")
        ),
    ],
)
def test_what_came_with_a_request_is_named_as_the_client_did(
    kind: table.Kind, field: str, ours: str, door: Door
) -> None:
    able = replace(
        door.limits, flow=True, max_images=2, max_videos=1, masks_videos=True, sound=SoundLimits(24_000, max_inputs=1)
    )
    entry = table.fields_of(kind)[field]
    form = entry.shape in ("file", "picture", "clip")
    given = {} if form else {field: "data:,"}
    wanted = read({"prompt": "x", **given}, kind, replace(door, limits=able), form=form, files=[field] if form else [])
    assert renamed(RequestError(f"the {ours} cannot be read", ours), wanted.names).param == field


def test_a_part_of_a_picture_is_told_by_a_mask_or_margins_where_the_model_can_draw_one(door: Door) -> None:
    able = replace(door, limits=replace(door.limits, flow=True, max_images=1))
    whole = replace(able, limits=replace(able.limits, flow=False))
    assert able.masks and not whole.masks
    for mask in ("mask", "mask_image"):
        assert read({"prompt": "x"}, "edit", able, form=True, files=["image", mask]).names["mask"] == mask
        with pytest.raises(ApiError, match="describe what changes") as caught:
            read({"prompt": "x"}, "edit", whole, form=True, files=["image", mask])
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", mask)
    assert read({"prompt": "x", "mask": {"image_url": "data:,"}}, "edit", able).part.mask_urls == ("data:,",)
    assert read({"prompt": "x", "pad": "64, 0,64,0"}, "edit", able, form=True).part.pad == (64, 0, 64, 0)
    assert read({"prompt": "x", "pad": [1, 2, 3, 4]}, "edit", able).part.pad == (1, 2, 3, 4)
    for wrong in ("64", "a,b,c,d", [1, 2, 3], [1, 2, 3, 4.5], 7):
        with pytest.raises(ApiError) as caught:
            read({"prompt": "x", "pad": wrong}, "edit", able)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "pad")
    with pytest.raises(ApiError, match="describe what changes") as caught:
        read({"prompt": "x", "pad": "64,0,64,0"}, "edit", whole, form=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "pad")


def test_a_model_that_reads_no_text_is_asked_without_a_prompt(door: Door) -> None:
    silent = Foreign(
        "diffusers", {}, lambda negative, params: None, door="omnimuse.compat.diffusers.door", prompted=False
    )
    door = replace(door, spec=replace(door.spec, foreign=silent))
    assert read({}, "video", door).prompt == ""
    assert read({"prompt": ""}, "video", door).prompt == ""
    with pytest.raises(RequestError, match="prompt means nothing to"):
        to_request(read({"prompt": "a storm"}, "video", door), door)


def test_an_edit_may_name_addresses_and_how_much_is_drawn_anew(door: Door) -> None:
    assert read({"prompt": "x", "url": "data:,"}, "edit", door, form=True).urls == ("data:,",)
    assert read({"prompt": "x", "url": ["a", "b"]}, "edit", door, form=True).urls == ("a", "b")
    assert read({"prompt": "x", "strength": "0.3"}, "edit", door, form=True).params.strength == 0.3
    assert read({"prompt": "x", "input_fidelity": "low"}, "edit", door, form=True).params == DiffusionParams()
    for given, said in (({"input_fidelity": "high"}, "`strength`"), ({"url": [{"x": "y"}]}, "list of URLs")):
        with pytest.raises(ApiError, match=said):
            read({"prompt": "x", **given}, "edit", door, form=True)


# -- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "frames"),
    [
        ({"seconds": "4"}, 65),
        ({"seconds": 2}, 33),
        ({"seconds": 1.06}, 17),
        ({"seconds": 2, "fps": 8}, 17),
        ({"seconds": 0.01}, 1),
        ({"num_frames": 33}, 33),
        ({"seconds": 2, "num_frames": 33}, 33),
        ({"seconds": 4, "num_frames": 33}, 33),
        ({"video_params": {"num_frames": 33, "width": 64}}, 33),
        ({}, 81),
    ],
)
def test_seconds_become_the_nearest_number_of_frames_that_the_model_makes(
    videos: Door, given: dict[str, Any], frames: int
) -> None:
    assert ask(videos, "video", **given).params.num_frames == frames


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"seconds": "60"}, "invalid_value", "seconds"),
        ({"seconds": 1e300}, "invalid_value", "seconds"),
        ({"seconds": "soon"}, "invalid_value", "seconds"),
        ({"seconds": 0}, "invalid_value", "seconds"),
        ({"num_frames": 33, "video_params": {"num_frames": 17}}, "conflicting_parameters", "video_params.num_frames"),
        ({"video_params": {"length": 17}}, "unknown_parameter", "video_params.length"),
        ({"fps": 0}, "invalid_value", "fps"),
        ({"num_frames": 34}, "invalid_value", "num_frames"),
        ({"generate_sound": True}, "unsupported_parameter", "generate_sound"),
        ({"input_reference": "photo.png"}, "invalid_value", "input_reference"),
        ({"input_reference": "data:,a"}, "unsupported_parameter", "input_reference"),
    ],
)
def test_what_a_video_model_cannot_film_is_refused(videos: Door, given: dict[str, Any], code: str, param: str) -> None:
    error = refused(videos, "video", **given)
    assert (error.code, error.param) == (code, param)


# -- previews, patience, documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 10, 28, 50, 1000])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_previews_are_spread_evenly_and_never_after_the_last_step(steps: int, wanted: int) -> None:
    shown = preview_steps(steps, wanted)
    assert len(shown) == min(wanted, steps - 1)
    assert all(0 < step < steps for step in shown)
    assert list(shown) == sorted(set(shown))
    if shown:
        period = preview_period(steps, wanted)
        assert all(step % period == 0 for step in shown)
        gaps = [after - before for before, after in zip((0, *shown), (*shown, steps), strict=True)]
        assert max(gaps) - min(gaps) <= period


@pytest.mark.parametrize(("scheduler", "evaluations"), [(None, 20), ("heun", 39)])
def test_previews_are_spread_over_every_evaluation(door: Door, scheduler: str | None, evaluations: int) -> None:
    fields = {"prompt": "a star", "num_inference_steps": 20, **({"scheduler": scheduler} if scheduler else {})}
    made = to_request(read(fields, "image", door), door, looks=3)
    assert (made.steps, made.evaluations) == (20, evaluations)
    assert made.previews == preview_period(evaluations, 3)


def test_the_client_s_read_timeout_is_its_patience() -> None:
    assert patience({"x-stainless-read-timeout": "600"}) == 600
    for said in (
        {},
        {"x-stainless-read-timeout": "NaN"},
        {"x-stainless-read-timeout": "-1"},
        {"x-stainless-read-timeout": "x"},
    ):
        assert patience(said) is None


def test_the_described_bodies_are_those_that_are_read(door: Door) -> None:
    for model, kind in ((ImageRequest, "image"), (ChatRequest, "chat")):
        assert set(model.model_fields) == {row.name for row in table.TABLE[kind] if row.target}  # type: ignore[index]
    described = ImageRequest(prompt="x", size="64x64", n=2, quality="low", background=True)  # type: ignore[call-arg]
    assert read(described.model_dump(), "image", door).delivery.durable
