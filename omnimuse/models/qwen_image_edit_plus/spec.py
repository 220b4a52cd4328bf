"""Facts about Qwen-Image-Edit from 2509 on, without torch: a kind of Qwen-Image-Edit that takes several pictures.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omnimuse.core.spec import Configs, Limits, Variant
from omnimuse.models.qwen_image_edit import spec as edit

MAX_IMAGES = 3
"""Pictures that the authors train and serve it with; the positions know no bound."""


@dataclass(frozen=True)
class EditPlusParams(edit.EditParams):
    """The prompt is read with pictures of about `read_area` pixels, in their own proportions."""

    read_area: int = field(default=384 * 384, metadata={"low": 32 * 32, "high": edit.AREA})


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: it makes one picture of several."""
    return replace(edit.limits(configs), max_images=MAX_IMAGES)


def of_2511(configs: Configs) -> str:
    """The later checkpoint shows pictures as standing still in time."""
    told = configs["transformer"].get("zero_cond_t")
    return "its transformer/config.json says zero_cond_t" if told else ""


DEFAULTS = replace(edit.DEFAULTS, num_inference_steps=40, strength=None)

SPEC = replace(
    edit.SPEC,
    arch="QwenImageEditPlusPipeline",
    family="qwen_image_edit_plus",
    summary="Qwen-Image-Edit 2509 and 2511: a picture made of up to three others, as a text says",
    defaults=DEFAULTS,
    supported=edit.SPEC.supported - {"strength"},  # the size is the last picture's, and a mask the first one's
    limits=limits,
    also=(),
    extra=EditPlusParams,
    variants=(
        Variant("Qwen-Image-Edit-2511", ("Qwen/Qwen-Image-Edit-2511",), DEFAULTS, of_2511),
        Variant("Qwen-Image-Edit-2509", ("Qwen/Qwen-Image-Edit-2509",), DEFAULTS),
    ),
)
