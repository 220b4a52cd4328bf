"""Facts about FLUX.1 Depth and Canny, without torch: kinds of FLUX.1 that see a picture of depths, or of edges.

Source: the reference pipeline of diffusers (FluxControlPipeline) and its examples. Such a picture is given as it is:
nothing here makes one of another. The reference is not guided against a negative prompt; here it can be.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.core.caches import Fits
from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Configs, Limits, Variant
from omnimuse.models.flux import spec as flux
from omnimuse.models.flux.spec import PATCH


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for; ModelError for a network that is not shown what this pipeline shows."""
    latents, transformer = configs["vae"]["latent_channels"], configs["transformer"]
    assert isinstance(latents, int)
    seen, drawn = transformer.get("in_channels"), transformer.get("out_channels")
    needed = (2 * PATCH**2 * latents, PATCH**2 * latents)
    if (seen, drawn) != needed:
        raise ModelError(
            f"transformer/config.json: in_channels={seen}, out_channels={drawn}; a network that follows a picture with "
            f"this autoencoder has {needed[0]} and {needed[1]}; use the files of one checkpoint"
        )
    return replace(flux.bounds(configs), min_images=1)


DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=30.0).over(replace(flux.DEFAULTS, strength=None))
DEPTH = DiffusionParams(num_inference_steps=30, guidance_scale=10.0).over(DEFAULTS)

SPEC = replace(
    flux.SPEC,
    arch="FluxControlPipeline",
    family="flux_control",
    summary="FLUX.1 Depth and Canny: pictures from text that follow a picture of depths or of edges",
    tasks=("image-to-image",),
    defaults=DEFAULTS,
    supported=flux.SPEC.supported - {"strength"},
    limits=limits,
    also=(),
    fits=Fits(),
    variants=(
        Variant("FLUX.1-Canny-dev", ("black-forest-labs/FLUX.1-Canny-dev",), DEFAULTS),
        Variant("FLUX.1-Depth-dev", ("black-forest-labs/FLUX.1-Depth-dev",), DEPTH),
    ),
)
