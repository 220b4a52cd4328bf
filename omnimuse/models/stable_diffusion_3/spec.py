"""Facts about Stable Diffusion 3 and 3.5, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipelines of diffusers. The third
text encoder, by far the largest, may be left out of a checkpoint: zeros then stand for what it would say.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omnimuse.components.entries import CLIP_PROJECTED, SQUARE, T5, Reader, latent_model, own_transformer
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
MAX_SEQUENCE_LENGTH = 512  # of the third text encoder


SKIPPED = "skipped"
"""The branch of the prompt in which some blocks of the network are left out."""


@dataclass(frozen=True)
class Sd3Params(FamilyParams):
    """Guidance away from what the network draws without the blocks `skip_guidance_layers`, by the factor
    `skip_layer_guidance_scale`, in guided steps that come after the share `skip_layer_guidance_start` of all and before
    `skip_layer_guidance_stop`.
    """

    skip_guidance_layers: tuple[int, ...] = ()
    skip_layer_guidance_scale: float = field(default=2.8, metadata={"low": 0, "high": 100})
    skip_layer_guidance_start: float = field(default=0.01, metadata={"low": 0, "high": 1})
    skip_layer_guidance_stop: float = field(default=0.2, metadata={"low": 0, "high": 1})

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if self.skip_guidance_layers and (params.guidance_scale or 0.0) <= 1:
            scale = params.guidance_scale or 0.0
            return f"skip_guidance_layers does nothing while guidance_scale is {scale:g}; choose a scale above 1"
        return None


def combination(extra: FamilyParams) -> Combination:
    """Led away from skipped blocks, where some are named."""
    assert isinstance(extra, Sd3Params)
    within = (extra.skip_layer_guidance_start, extra.skip_layer_guidance_stop)
    aside = SKIPPED if extra.skip_guidance_layers else ""
    return Combination(aside=aside, away=extra.skip_layer_guidance_scale, while_done=within)


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: every patch of latents needs a place."""
    multiple, most = PATCH * factor(configs["vae"]), configs["transformer"]["pos_embed_max_size"]
    assert isinstance(most, int)
    return Limits(
        size_multiple=multiple,
        max_side=most * multiple,
        max_images=1,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
    )


def dual(configs: Configs) -> str:
    """Of the published checkpoints only one has an image that attends to itself besides."""
    found = configs["transformer"].get("dual_attention_layers")
    return "its transformer has blocks with a second attention" if found else ""


def first(configs: Configs) -> str:
    """Only the first generation does not norm queries and keys."""
    return "" if configs["transformer"].get("qk_norm") else "its transformer does not norm queries and keys"


DEFAULTS = DiffusionParams(num_inference_steps=28, guidance_scale=7.0, max_sequence_length=256, strength=0.6).over(
    SQUARE
)

OPTIONAL_T5 = Reader(*(replace(part, optional=True) for part in T5))
"""Checkpoints may come without it: then its place is filled with zeros."""

SPEC = Spec(
    arch="StableDiffusion3Pipeline",
    family="stable_diffusion_3",
    summary="Stable Diffusion 3 and 3.5: pictures from text, two streams, three text encoders",
    tasks=("text-to-image", "image-to-image"),
    components=latent_model(
        own_transformer("stable_diffusion_3", "Sd3Transformer", "SD3Transformer2DModel", alias=True),
        CLIP_PROJECTED,
        CLIP_PROJECTED,
        OPTIONAL_T5,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "strength"}),
    limits=limits,
    guidance=Guidance(how=combination, most=3),
    extra=Sd3Params,
    also=("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    variants=(
        Variant(
            "Stable-Diffusion-3.5-medium",
            ("stabilityai/stable-diffusion-3.5-medium",),
            DiffusionParams(num_inference_steps=40, guidance_scale=4.5).over(DEFAULTS),
            dual,
        ),
        Variant(
            "Stable-Diffusion-3.5-large",
            ("stabilityai/stable-diffusion-3.5-large",),
            DiffusionParams(guidance_scale=3.5).over(DEFAULTS),
        ),
        Variant(
            "Stable-Diffusion-3.5-large-turbo",
            ("stabilityai/stable-diffusion-3.5-large-turbo",),
            DiffusionParams(num_inference_steps=4, guidance_scale=0.0).over(DEFAULTS),
        ),
        Variant("Stable-Diffusion-3-medium", ("stabilityai/stable-diffusion-3-medium-diffusers",), DEFAULTS, first),
    ),
)
