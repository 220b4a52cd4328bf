"""Facts about FLUX.1 Kontext, without torch: a kind of FLUX.1 that is shown a picture and told what to change.

Source: the published checkpoint's card, and the reference pipeline of diffusers. What is drawn has the area of the
default size and the proportions of the picture, unless a size is chosen: the reference would bring that to its default
area, too (`max_area`), and here a size means itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnimuse.core.params import FamilyParams
from omnimuse.core.spec import Configs, Limits, Size, Variant
from omnimuse.models.flux import spec as flux

PREFERRED: tuple[Size, ...] = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
"""Sizes of pictures that the network learned from."""


@dataclass(frozen=True)
class KontextParams(FamilyParams):
    """With `auto_resize` the network is shown the picture in that of the sizes it learned from whose proportions are
    nearest, else in the picture's own."""

    auto_resize: bool = True


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: sides in the proportions of a picture are rounded as the reference does."""
    return replace(flux.limits(configs), rounding="down")


def shown_size(size: Size, step: int, params: KontextParams) -> Size:
    """The size in which a picture of that size is shown: whole tokens of `step` pixels a side."""
    width, height = (max(side // step, 1) * step for side in size)
    if params.auto_resize:
        *_, width, height = min((abs(width / height - w / h), w, h) for w, h in PREFERRED)
    return width // step * step, height // step * step


DEFAULTS = replace(flux.DEFAULTS, guidance_scale=2.5, strength=1.0)

SPEC = replace(
    flux.SPEC,
    arch="FluxKontextPipeline",
    family="flux_kontext",
    summary="FLUX.1 Kontext: a picture changed as a text says, or pictures from text",
    tasks=("image-to-image", "text-to-image"),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "true_cfg_scale", "strength"}),
    limits=limits,
    also=("FluxKontextInpaintPipeline",),
    extra=KontextParams,
    variants=(Variant("FLUX.1-Kontext-dev", ("black-forest-labs/FLUX.1-Kontext-dev",), DEFAULTS),),
)
