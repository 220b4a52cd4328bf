"""Facts about FLUX.1 Fill, without torch: a kind of FLUX.1 that is shown a picture with a hole and fills that.

Source: the published checkpoint's configurations and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.core.autoencoder import factor
from omnimuse.core.caches import Fits
from omnimuse.core.errors import ModelError
from omnimuse.core.spec import Configs, Limits, Variant
from omnimuse.models.flux import spec as flux
from omnimuse.models.flux.spec import PATCH


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for; ModelError for a network that is not shown what this pipeline shows."""
    pixels, transformer = factor(configs["vae"]), configs["transformer"]
    latents = configs["vae"]["latent_channels"]
    assert isinstance(latents, int)
    shown = PATCH**2 * (2 * latents + pixels**2)  # what is drawn, what is kept, and for every pixel which it is
    if transformer.get("in_channels") != shown or transformer.get("out_channels") != PATCH**2 * latents:
        raise ModelError(
            f"transformer/config.json: in_channels={transformer.get('in_channels')}, "
            f"out_channels={transformer.get('out_channels')}; a network that fills in pictures with this autoencoder "
            f"has {shown} and {PATCH**2 * latents}; use the files of one checkpoint"
        )
    return replace(flux.bounds(configs), min_images=1)


DEFAULTS = replace(flux.DEFAULTS, num_inference_steps=50, guidance_scale=30.0, strength=1.0)

SPEC = replace(
    flux.SPEC,
    arch="FluxFillPipeline",
    family="flux_fill",
    summary="FLUX.1 Fill: a part of a picture, or what lies beyond its edges, drawn as a text says",
    tasks=("image-to-image",),
    defaults=DEFAULTS,
    limits=limits,
    fills=True,
    also=(),
    fits=Fits(),
    variants=(Variant("FLUX.1-Fill-dev", ("black-forest-labs/FLUX.1-Fill-dev",), DEFAULTS),),
)
