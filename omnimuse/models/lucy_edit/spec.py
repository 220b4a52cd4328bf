"""Facts about Lucy Edit, without torch: a kind of Wan that changes a video, of which its network sees every frame.

Source: the reference pipeline of diffusers (LucyEditPipeline) and its example.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Configs, Limits, Variant
from omnimuse.models.wan import spec as wan


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for; ModelError for a network that sees no video."""
    drawn, taken = wan.latent_channels(configs), configs["transformer"].get("in_channels")
    if taken != 2 * drawn:
        raise ModelError(
            f"transformer/config.json: in_channels={taken} with out_channels={drawn}; a network that changes a video "
            f"takes {2 * drawn}, its latents beside those of what is drawn: use the files of one checkpoint"
        )
    return wan.bounds(configs, images=(0, 0), videos=(1, 1))


DEFAULTS = DiffusionParams(fps=24.0).over(wan.DEFAULTS)

SPEC = replace(
    wan.SPEC,
    arch="LucyEditPipeline",
    family="lucy_edit",
    summary="Lucy Edit: a video changed as a text says, by a network of Wan's that sees it",
    tasks=("video-to-video",),
    components={
        name: replace(part, tells=None) for name, part in wan.SPEC.components.items() if not name.startswith("image_")
    },
    defaults=DEFAULTS,
    supported=wan.SPEC.supported - {"strength"},
    limits=limits,
    also=(),
    variants=(Variant("Lucy-Edit-Dev", ("decart-ai/Lucy-Edit-Dev",), DEFAULTS),),
)
