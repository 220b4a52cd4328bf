"""Facts about Qwen-Image-Layered, without torch: a kind of Qwen-Image that takes a picture apart into layers.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. The prompt
tells what the whole picture shows, what is hidden too; the reference lets the text encoder write it where nobody does,
here a prompt is read as it is written. The reference knows two sizes; here a size means itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.sizes import like_last
from omnimuse.core.spec import Component, Configs, Limits, Variant
from omnimuse.models.qwen_image import spec as qwen

AREA = 640 * 640
"""Pixels of each layer, unless others are asked for: the smaller of the two sizes that the network learned from."""
MAX_LAYERS = 16


@dataclass(frozen=True)
class LayeredParams(FamilyParams):
    """A picture becomes so many `layers`, the lowest first. With `cfg_normalize` every token keeps the norm that it has
    without guidance."""

    layers: int = field(default=4, metadata={"low": 1, "high": MAX_LAYERS})
    cfg_normalize: bool = False

    @property
    def pictures(self) -> int:
        return self.layers


def combination(extra: FamilyParams) -> Combination:
    """Tokens keep their norm, if that is asked for."""
    assert isinstance(extra, LayeredParams)
    return Combination(match_norm=extra.cfg_normalize, patch=qwen.PATCH)


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: it takes one picture apart."""
    return replace(qwen.limits(configs), min_images=1, sized=like_last(AREA))


DEFAULTS = replace(DiffusionParams(height=640, width=640).over(qwen.DEFAULTS), strength=None)

SPEC = replace(
    qwen.SPEC,
    arch="QwenImageLayeredPipeline",
    family="qwen_image_layered",
    summary="Qwen-Image-Layered: a picture taken apart into layers that can be seen through",
    tasks=("image-to-image",),
    components={**qwen.SPEC.components, "processor": Component((), built=False, optional=True)},
    defaults=DEFAULTS,
    supported=frozenset({"true_cfg_scale"}),
    limits=limits,
    guidance=Guidance(("true_cfg_scale",), negative=" ", how=combination),
    also=(),
    extra=LayeredParams,
    variants=(Variant("Qwen-Image-Layered", ("Qwen/Qwen-Image-Layered",), DEFAULTS),),
)
