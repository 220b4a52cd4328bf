"""Every field that clients of OpenAI, vLLM-Omni (VO) and SGLang (SG) send, and what it means here: one table.

`translate/aliases.py` reads requests with it, `protocol/` makes the OpenAPI request models from it. A field without a
target is known and refused with `note` as the reason, unless its value is one of `neutral`, which ask for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.request import MAX_PROMPT
from omnimuse.server.translate.field import (
    ADAPTERS,
    BLOCKS,
    DEADLINE,
    HARMLESS,
    MAX_OUTPUTS,
    MAX_WORD,
    MODEL,
    STEP_CACHE,
    Field,
    Kind,
    refused,
)
from omnimuse.server.translate.hearing import HEARING
from omnimuse.server.translate.speaking import SPEECH
from omnimuse.server.translate.talking import COMPLETION, TALK


def _language(name: str, *defaults: Any) -> Field:
    """A parameter of language models, at what clients leave it at."""
    return Field(name, "object", note=_NO_TEXT, neutral=defaults)


_START = "it is chosen when the server starts, not for each request"
_FLAT = "this server makes still pictures of one layer"
_NO_PATHS = "a request never names files or folders of the server"
_NO_TEXT = "the answer is a picture: no text is sampled; a picture is steered by its own fields, such as `seed`"
_KEEPS = "`strength` says how much of the picture is drawn anew: lower keeps more of it"
_TEXT_ONLY = "pictures to start from go to /v1/images/edits, with models that take them"

SHARED: tuple[Field, ...] = (
    MODEL,
    Field("negative_prompt", "text", "negative_prompt", "what to keep out", longest=MAX_PROMPT),
    Field("seed", "seed", "seed", "output i uses seed + i; chosen at random and reported when absent or -1"),
    Field("num_inference_steps", "whole", "num_inference_steps", "denoising steps"),
    Field("guidance_scale", "real", "guidance_scale", "how strongly the prompt is followed"),
    Field("guidance_scale_2", "real", "guidance_scale_2", "guidance of the second expert"),
    Field("true_cfg_scale", "real", "true_cfg_scale", "classifier-free guidance beside distilled guidance"),
    Field("max_sequence_length", "whole", "max_sequence_length", "text tokens that are read of the prompt"),
    Field("strength", "real", "strength", "how much of the input picture is drawn anew, up to 1 for all of it"),
    Field("flow_shift", "real", "flow_shift", "how far the noise levels move towards noise; 1 moves nothing"),
    Field("boundary_ratio", "real", "boundary_ratio", "the share of the noise above which the first expert evaluates"),
    Field("scheduler", "text", "scheduler", f"{', '.join(SCHEDULERS)}; in place of the checkpoint's", longest=MAX_WORD),
    Field("size", "size", "size", '"auto" (the model\'s own size), WIDTHxHEIGHT in pixels, or "adjust" (see there)'),
    Field(
        "adjust", "flag", "adjust", "sides and frames become the nearest that the model makes, and it is told (ours)"
    ),
    Field("width", "whole", "width", "pixels"),
    Field("height", "whole", "height", "pixels"),
    Field("resolution", "resolution", "size", "the side of a square in pixels, or WIDTHxHEIGHT (VO)"),
    BLOCKS,
    Field("timeout_s", "real", "deadline", "give up after so many seconds"),
    DEADLINE,
    Field("extra_params", "object", "extra", "the family's own parameters, by name"),
    Field(
        "user",
        "text",
        HARMLESS,
        "names an end user for abuse monitoring; this server does none and keeps none",
        longest=MAX_WORD,
    ),
    Field(
        "safety_identifier",
        "text",
        "safety_identifier",
        "as `user`; repeated in the answer and not kept",
        longest=MAX_WORD,
    ),
    Field(
        "generator_device",
        "choice",
        HARMLESS,
        "noise always comes from a generator on the CPU, so that a seed means the same on every machine (VO, SG)",
        allowed=("cpu", "auto", "cuda", "gpu", "musa", "npu", "xpu", "mps"),
        warns="noise comes from a generator on the CPU here: a seed gives another picture than with one there",
    ),
    *ADAPTERS,
    *STEP_CACHE,
    *refused(_START, "vae_use_slicing", "vae_use_tiling"),
    *refused("trajectories for training are not recorded", "rollout", "return_trajectory_latents"),
    *refused("trajectories for training are not recorded", "rollout_sde_type", neutral=("sde",)),
    *refused("the models here are not run by diffusers; use `extra_params`", "diffusers_kwargs"),
    *refused(_NO_PATHS, "output_path", "output_dir", "output_file_name", "save_output"),
    *refused("pictures are not enlarged after they are drawn; choose a larger `size`", "enable_upscaling"),
    *refused("profiles are for the server's operator", "profile"),
    Field(
        "quality",
        "choice",
        "level",
        "computation: low is 1/2, medium 1, high (hd) 3/2, xhigh 2 and max (maximum) 3 times the model's own number of"
        " steps; auto, standard and default are that number",
        allowed=("auto", "standard", "default", "low", "medium", "high", "hd", "xhigh", "max", "maximum"),
    ),
)
"""What every endpoint that draws knows."""

_FILE_FORM: tuple[Field, ...] = (
    Field("n", "whole", "num_outputs_per_prompt", "how many", low=1, high=MAX_OUTPUTS),
    Field("num_outputs_per_prompt", "whole", "num_outputs_per_prompt", "as `n` (VO, SG)", low=1, high=MAX_OUTPUTS),
    Field("output_format", "choice", "format", "the file's format", allowed=("png", "jpeg", "jpg", "webp")),
    Field("output_compression", "whole", "compression", "quality of jpeg and webp, 100 is best", low=0, high=100),
    Field(
        "output_quality",
        "choice",
        "compression",
        "quality of jpeg and webp as a word (SG)",
        allowed=("default", "auto", "low", "medium", "high", "maximum"),
    ),
    Field("moderation", "choice", HARMLESS, "this server filters nothing, the least of both", allowed=("auto", "low")),
)

IMAGE: tuple[Field, ...] = (
    *SHARED,
    *_FILE_FORM,
    Field("prompt", "text", "prompt", "what to draw", longest=MAX_PROMPT),
    Field(
        "background",
        "background",
        "background",
        '"auto" or "opaque" for the picture; true makes the answer a job that is kept and asked for later (ours)',
        allowed=("auto", "opaque"),
    ),
    Field(
        "response_format",
        "choice",
        "transport",
        "how pictures come back; file: the picture itself, of several a ZIP (ours)",
        allowed=("b64_json", "url", "file"),
    ),
    Field("stream", "flag", "stream", "answer with server-sent events"),
    Field("partial_images", "whole", "partial_images", "previews in a stream, spread evenly", low=0, high=3),
    Field("progress", "flag", "progress", "an event for every step in a stream (ours)"),
    Field(
        "style",
        "choice",
        HARMLESS,
        "a word for models that know it: describe the style in the prompt",
        allowed=("vivid", "natural"),
        warns="style has no part in the picture; describe it in the prompt",
    ),
    *refused("this model plans nothing before it draws", "complexity", "bot_task", "system_prompt"),
    *refused("this model plans nothing before it draws", "use_system_prompt", neutral=("None",)),
    *refused(_FLAT, "frame_count", "frame_duration_ms", "svg", "layers", "fps"),
    *refused(_FLAT, "num_frames", neutral=(1,)),
    *refused("it concerns input pictures", "infer_align_image_size"),
)

_INPUT_NAMES = ("image", "images", "mask", "mask_image", "pad", "markup", "reference_image", "input_fidelity", "url")

TABLE: Mapping[Kind, tuple[Field, ...]] = {
    "image": (*IMAGE, *refused(_TEXT_ONLY, *_INPUT_NAMES)),
    "edit": (
        *IMAGE,
        Field(
            "image", "picture", "urls", "the picture to edit, or pictures as image[]: png, jpeg or webp, or a data: URL"
        ),
        Field("images", "picture", "urls", 'as `image`, in JSON: [{"image_url": "data:..."}]'),
        Field("reference_image", "picture", "urls", "another picture to look at (VO)"),
        Field("url", "urls", "urls", "the picture as a data: URL, or as an address of a host that is allowed (VO)"),
        Field(
            "mask",
            "picture",
            "mask",
            "what is drawn anew of the first picture, whose size it has: where it is transparent or, without that, "
            "white; the rest is kept",
        ),
        Field("mask_image", "picture", "mask", "as `mask` (VO)"),
        Field(
            "pad",
            "margins",
            "pad",
            "draw on beyond the edges of the first picture, by so many of its pixels: left, above, right, below (ours)",
        ),
        *refused("no model here reads it", "markup"),
        *refused(_KEEPS, "input_fidelity", neutral=("low",)),
    ),
    "video": (
        *SHARED,
        Field("prompt", "text", "prompt", "what to film", longest=MAX_PROMPT),
        Field("seconds", "seconds", "length", "length; rounded to a number of frames that the model can make"),
        Field("fps", "real", "fps", "frames per second"),
        Field("num_frames", "whole", "num_frames", "frames; counts where `seconds` is given, too"),
        Field(
            "input_reference", "picture", "urls", "the first frame: png, jpeg or webp, or {image_url} as in OpenAI's"
        ),
        Field("image", "picture", "urls", "as `input_reference`; two as image[] are the first frame and the last"),
        Field("last_image", "picture", "last_urls", "the last frame, where the model takes one (ours)"),
        Field(
            "video",
            "clip",
            "videos",
            "a video to start from: an upload, a data: URL, or an address of a host that is allowed; mp4, mov, webm, "
            "mkv, avi or ts",
        ),
        Field("video_reference", "clip", "videos", "as `video` (VO)"),
        Field(
            "mask",
            "picture",
            "mask",
            "what is drawn anew of every frame of `video`, whose size it has: where it is white",
        ),
        Field("video_mask", "clip", "masks", "the same as a video, which has a mask for every frame (ours)"),
        Field(
            "url", "urls", "urls", "as `input_reference`: a data: URL, or an address of a host that is allowed (ours)"
        ),
        Field("video_params", "object", "nested", "width, height, fps and num_frames in an object (VO)"),
        *refused("one request makes one video", "n", "num_outputs_per_prompt", neutral=(1,)),
        *refused("videos are mp4", "output_format", neutral=("mp4",)),
        *refused("videos are encoded in one, visually lossless, quality", "output_compression"),
        *refused(
            "videos are encoded in one, visually lossless, quality",
            "output_quality",
            neutral=("default", "auto", "maximum"),
        ),
        *refused("follow a video at /v1/videos/{id}/events", "stream"),
        *refused("this model makes no sound", "generate_sound"),
        *refused("this model makes no sound", "sound_duration", "audio_reference"),
        *refused("frames are never invented between frames", "enable_frame_interpolation"),
        *refused("frames are never invented between frames", "frame_interpolation_exp", "frame_interpolation_scale"),
        *refused(_NO_PATHS, "frame_interpolation_model_path"),
        *refused("send a picture as `input_reference`", "reference_url", "image_reference"),
    ),
    "audio": (
        *SHARED,
        Field("input", "text", "prompt", "what to be heard (VO)", longest=MAX_PROMPT),
        Field("prompt", "text", "prompt", "as `input` (ours)", longest=MAX_PROMPT),
        Field("audio_length", "seconds", "length", "how many seconds (VO)"),
        Field("seconds", "seconds", "length", "as `audio_length` (ours)"),
        Field("audio_start", "real", "start", "where in the model's whole the sound begins, in seconds (VO)"),
        Field(
            "response_format",
            "choice",
            "format",
            "the file's format",
            allowed=("wav", "flac", "ogg", "mp3", "opus", "aac", "pcm"),
        ),
        Field(
            "output_format",
            "choice",
            "format",
            "as `response_format`",
            allowed=("wav", "flac", "ogg", "mp3", "opus", "aac", "pcm"),
        ),
        Field(
            "stream_format",
            "choice",
            "stream_format",
            "sse answers with events: steps, pieces of the sound as they are finished, the whole as a file",
            allowed=("audio", "sse"),
        ),
        Field("audio", "file", "sounds", "a sound to start from: wav, flac, ogg or mp3"),
        *refused("say how fast it is in the prompt", "speed", neutral=(1, 1.0)),
        *refused("one request makes one sound", "n", "num_outputs_per_prompt", neutral=(1,)),
        *refused("choose `stream_format`", "stream", neutral=(False,)),
        *refused("texts are spoken at /v1/audio/speech, by models that speak", "voice", "instructions"),
        *refused("texts are spoken at /v1/audio/speech, by models that speak", "ref_audio", "ref_text"),
    ),
    "chat": (
        *SHARED,
        *_FILE_FORM,
        Field("messages", "list", "messages", "the conversation; the text of the last user message is the prompt"),
        Field("modalities", "list", "modalities", '["image"] or ["text", "image"]'),
        Field("stream", "flag", "stream", "answer with server-sent events"),
        Field("partial_images", "whole", "partial_images", "looks at unfinished pictures in a stream", low=0, high=3),
        Field("stream_options", "object", "stream_options", "include_usage adds a last chunk with the usage"),
        Field("extra_body", "object", "nested", "more fields of this table in an object (VO, with curl)"),
        Field("max_tokens", "whole", HARMLESS, "bounds text tokens, of which the answer has none", low=1),
        Field("max_completion_tokens", "whole", HARMLESS, "bounds text tokens, of which the answer has none", low=1),
        Field("prompt_cache_key", "text", HARMLESS, "a hint for speed that never changes an answer", longest=MAX_WORD),
        Field("service_tier", "choice", HARMLESS, "there is one tier", allowed=("auto", "default")),
        Field("parallel_tool_calls", "flag", HARMLESS, "tools are refused, so none is called"),
        _language("temperature", 1, 1.0, 0.7),
        _language("top_p", 1, 1.0),
        _language("top_k", -1, 0),
        _language("min_p", 0, 0.0),
        _language("frequency_penalty", 0, 0.0),
        _language("presence_penalty", 0, 0.0),
        _language("repetition_penalty", 1, 1.0),
        _language("length_penalty", 1, 1.0),
        _language("logprobs"),
        _language("top_logprobs", 0),
        _language("stop"),
        _language("logit_bias"),
        _language("best_of", 1),
        _language("use_beam_search"),
        _language("ignore_eos"),
        _language("skip_special_tokens", True),
        _language("verbosity", "medium"),
        _language("reasoning_effort", "none", "medium"),
        _language("prediction"),
        *refused("the answer is a picture", "response_format", neutral=({"type": "text"},)),
        *refused("this model calls no tools", "tools", "functions"),
        *refused("this model calls no tools", "tool_choice", "function_call", neutral=("none", "auto")),
        *refused("sounds are made at /v1/audio/generate", "audio"),
        *refused("conversations are not stored", "store"),
        *refused("conversations are not stored", "metadata"),
        *refused("this model searches nothing", "web_search_options"),
        *refused(_FLAT, "layers", "num_frames", "fps", neutral=(1,)),
    ),
    "speech": SPEECH,
    "talk": TALK,
    "completion": COMPLETION,
    "hearing": HEARING,
}
"""The table, by endpoint."""


def fields_of(kind: Kind) -> dict[str, Field]:
    """The fields of one endpoint by wire name."""
    return {field.name: field for field in TABLE[kind]}
