"""Facts about FLUX.1 dev and schnell, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipeline of diffusers.
`guidance_scale` is an input of the distilled network, not a second evaluation; `true_cfg_scale` above 1 together with a
negative prompt is classifier-free guidance proper, at twice the cost.
"""

from __future__ import annotations

from omnimuse.components.entries import CLIP, T5, latent_model
from omnimuse.core.autoencoder import factor
from omnimuse.core.caches import Fits, TeaFit
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
MAX_SIDE = 4096  # the positions know no bound; beyond this the model was never seen to draw


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for; ModelError for a network that is shown more than it draws."""
    seen, drawn = (configs["transformer"].get(name) for name in ("in_channels", "out_channels"))
    if drawn not in (None, seen):
        raise ModelError(
            f"transformer/config.json: in_channels={seen}, out_channels={drawn}; such a network is shown more than it "
            "draws, and belongs to another pipeline than model_index.json says"
        )
    return bounds(configs)


def bounds(configs: Configs) -> Limits:
    """The bounds of every kind: schnell has no guidance input, and learned from shorter texts."""
    guided = bool(configs["transformer"].get("guidance_embeds"))
    return Limits(
        size_multiple=PATCH * factor(configs["vae"]),
        max_side=MAX_SIDE,
        max_images=1,
        max_sequence_length=512 if guided else 256,
        fixed=DiffusionParams() if guided else DiffusionParams(guidance_scale=0.0),
    )


def unguided(configs: Configs) -> str:
    """The fully distilled checkpoint takes no guidance scale."""
    return "" if configs["transformer"].get("guidance_embeds") else "its transformer has no input for a guidance scale"


DEFAULTS = DiffusionParams(
    num_inference_steps=28,
    guidance_scale=3.5,
    true_cfg_scale=1.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=512,
    strength=0.6,
    output_type="pil",
)

FITS = Fits(
    # Fitted to FLUX.1-dev by the method's authors (github.com/ali-vilab/TeaCache, TeaCache4FLUX), where 0.25 is the
    # smallest threshold. This polynomial is nowhere below 0.17: a threshold below that skips nothing.
    tea=TeaFit((4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01), threshold=0.25),
    # Measured over 28 steps of FLUX.1-dev by the method's authors (github.com/Zehong-Ma/MagCache).
    ratios=(
        *(1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047),
        *(1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828),
        *(0.96484, 0.95703, 0.93359, 0.89062),
    ),
)

SPEC = Spec(
    arch="FluxPipeline",
    family="flux",
    summary="FLUX.1 dev and schnell: pictures from text, separate streams of text and image that become one",
    tasks=("text-to-image", "image-to-image"),
    components=latent_model(
        Component(
            ("FluxTransformer2DModel",),
            network="omnimuse.models.flux.transformer:FluxTransformer",
            rules="omnimuse.models.flux.weights:RULES",
            aliases="omnimuse.models.flux.weights:ALIASES",
        ),
        CLIP,
        T5,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "strength", "true_cfg_scale"}),
    limits=limits,
    guidance=Guidance(("true_cfg_scale",), negative=None),
    also=("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    fits=FITS,
    variants=(
        Variant("FLUX.1-dev", ("black-forest-labs/FLUX.1-dev",), DEFAULTS),
        Variant(
            "FLUX.1-Krea-dev",
            ("black-forest-labs/FLUX.1-Krea-dev",),
            DiffusionParams(guidance_scale=4.5).over(DEFAULTS),
        ),
        Variant(
            "FLUX.1-schnell",
            ("black-forest-labs/FLUX.1-schnell",),
            DiffusionParams(num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256).over(DEFAULTS),
            unguided,
        ),
    ),
)
