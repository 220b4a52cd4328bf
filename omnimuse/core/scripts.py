"""What scripts for a model that draws and writes with one network say in words of vLLM-Omni's pipeline, in ours.

These are prompts in templates, and extra choices. Our pipeline reads what is said as the published code does, marks and
all; so the template around a prompt is taken off. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams

BEGIN, END = r"<\|im_start\|>", r"<\|im_end\|>"
SAID = (
    re.compile(rf"{BEGIN}user\n(?:<\|image_pad\|>\n)?(?P<said>.*?){END}\n{BEGIN}assistant\n", re.DOTALL),
    re.compile(rf"(?:<\|fim_middle\|>)?{BEGIN}(?P<said>.*?){END}", re.DOTALL),
)
"""The templates: of a question, about a picture or not, and of what is drawn, by changing a picture or not."""
MEDIA = {"text": "text", "image": "image", "text2img": "image", "img2img": "image"}
EXTRA = {
    "cfg_text_scale": "guidance_scale",
    "cfg_img_scale": "picture_scale",
    "cfg_renorm_type": "renorm",
    "think": "think",
    "max_think_tokens": "max_tokens",
}
"""Their names for choices, and ours."""
NEUTRAL = {"cfg_renorm_min": 0.0, "timestep_shift": 3.0, "do_sample": False}
"""Others, and the one value that is as it is here."""


def understood(prompt: dict[str, Any], params: DiffusionParams) -> tuple[dict[str, Any], DiffusionParams]:
    """A prompt and what was chosen for it, in our words; RequestError for what cannot be chosen."""
    prompt = _said(prompt)
    return prompt, _chosen(params, tuple(prompt.get("modalities") or ("image",)))


def _said(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt without its template, its media by our names."""
    text = prompt.get("prompt")
    if isinstance(text, str) and (found := next((found for each in SAID if (found := each.fullmatch(text))), None)):
        prompt = {**prompt, "prompt": found["said"]}
    if (media := prompt.get("modalities")) is not None:
        prompt = {**prompt, "modalities": [MEDIA.get(each, each) for each in media]}
    return prompt


def _chosen(params: DiffusionParams, media: tuple[str, ...]) -> DiffusionParams:
    """What was chosen, in our words, for an output of these `media`; between levels of noise there is a step less."""
    extra = dict(params.extra) if isinstance(params.extra, Mapping) else {}
    extra |= {ours: extra.pop(name) for name, ours in EXTRA.items() if name in extra}
    for name, value in NEUTRAL.items():
        if name in extra and extra.pop(name) != value:
            raise RequestError(f"extra_args: {name} cannot be chosen; use {value}", f"extra.{name}")
    if (interval := extra.pop("cfg_interval", None)) is not None:
        if float(interval[1]) != 1.0:
            raise RequestError(
                f"cfg_interval={interval} cannot be: it ends at the noise; use 1.0", "extra.cfg_interval"
            )
        extra["guided_above"] = float(interval[0])
    if extra.get("think") and "image" in media:
        extra["modalities"] = ("text", "image")
        del extra["think"]
    if (scale := extra.pop("guidance_scale", None)) is not None:
        params = replace(params, guidance_scale=float(scale))
    if (levels := params.num_inference_steps) is not None:
        if levels < 2:
            raise RequestError(f"{levels} levels of noise have no step between them; use at least 2", "steps")
        params = replace(params, num_inference_steps=levels - 1)
    return replace(params, extra=extra or None)
