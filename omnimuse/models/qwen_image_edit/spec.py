"""Facts about Qwen-Image-Edit, without torch: a kind of Qwen-Image that reads and is shown a picture to change.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. The prompt is
read together with the picture, whole. Guidance is as in Qwen-Image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omnimuse.core.params import FamilyParams
from omnimuse.core.sizes import like_last
from omnimuse.core.spec import Component, Configs, Limits, Variant
from omnimuse.models.qwen_image import spec as qwen

AREA = 1024 * 1024
"""Pixels of what is drawn and of what is shown, unless others are asked for."""


@dataclass(frozen=True)
class EditParams(FamilyParams):
    """The network is shown the picture with about `shown_area` pixels, in its own proportions; fewer cost less time."""

    shown_area: int = field(default=AREA, metadata={"low": 32 * 32, "high": 4 * AREA})


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: it changes one picture."""
    whole = {"max_sequence_length": "the prompt is read whole, together with the picture; leave it out"}
    return replace(qwen.limits(configs), min_images=1, sized=like_last(AREA), refuses=whole)


DEFAULTS = replace(qwen.DEFAULTS, strength=1.0, max_sequence_length=None)

SPEC = replace(
    qwen.SPEC,
    arch="QwenImageEditPipeline",
    family="qwen_image_edit",
    summary="Qwen-Image-Edit: a picture changed as a text says, with words in it",
    tasks=("image-to-image",),
    components={
        **qwen.SPEC.components,
        "text_encoder": Component(("Qwen2_5_VLForConditionalGeneration",), part="model"),
        "processor": Component((), built=False),
    },
    defaults=DEFAULTS,
    supported=frozenset({"true_cfg_scale", "strength"}),
    limits=limits,
    also=("QwenImageEditInpaintPipeline",),
    extra=EditParams,
    variants=(Variant("Qwen-Image-Edit", ("Qwen/Qwen-Image-Edit",), DEFAULTS),),
)
