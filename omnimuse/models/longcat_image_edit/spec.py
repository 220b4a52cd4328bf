"""Facts about LongCat-Image-Edit, without torch: a kind of LongCat-Image that reads and is shown a picture to change.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers, which knows no
other size than that which suits the picture. What is drawn and what is shown have one size.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.core.guidance import Guidance
from omnimuse.core.params import FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Variant
from omnimuse.models.longcat_image import spec as longcat

DEFAULTS = longcat.DEFAULTS


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: it changes one picture, whose sides are rounded as the reference does."""
    return replace(longcat.limits(configs), min_images=1, max_images=1, rounding="up")


SPEC = replace(
    longcat.SPEC,
    arch="LongCatImageEditPipeline",
    family="longcat_image_edit",
    summary="LongCat-Image-Edit: a picture changed as an English or Chinese text says",
    tasks=("image-to-image",),
    components={
        **longcat.SPEC.components,
        "text_encoder": Component(("Qwen2_5_VLForConditionalGeneration",), part="model"),
        "text_processor": Component((), built=False),
    },
    defaults=DEFAULTS,
    limits=limits,
    guidance=Guidance(),
    extra=FamilyParams,
    variants=(Variant("LongCat-Image-Edit", ("meituan-longcat/LongCat-Image-Edit",), DEFAULTS),),
)
