"""Facts about Stable Diffusion 3 and 3.5, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipelines of diffusers. The third
text encoder, by far the largest, may be left out of a checkpoint: zeros then stand for what it would say. Guidance by
skipped layers is not offered.
"""

from __future__ import annotations

from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
MAX_SEQUENCE_LENGTH = 512  # of the third text encoder


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


DEFAULTS = DiffusionParams(
    num_inference_steps=28,
    guidance_scale=7.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=256,
    strength=0.6,
    output_type="pil",
)

SPEC = Spec(
    arch="StableDiffusion3Pipeline",
    family="stable_diffusion_3",
    summary="Stable Diffusion 3 and 3.5: pictures from text, two streams, three text encoders",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": Component(
            ("SD3Transformer2DModel",),
            network="omnimuse.models.stable_diffusion_3.transformer:Sd3Transformer",
            rules="omnimuse.models.stable_diffusion_3.weights:RULES",
        ),
        "text_encoder": Component(("CLIPTextModelWithProjection",)),
        "tokenizer": Component(("CLIPTokenizer",)),
        "text_encoder_2": Component(("CLIPTextModelWithProjection",)),
        "tokenizer_2": Component(("CLIPTokenizer",)),
        "text_encoder_3": Component(("T5EncoderModel",), optional=True),
        "tokenizer_3": Component(("T5Tokenizer",), optional=True),
        "vae": Component(
            ("AutoencoderKL",),
            network="omnimuse.components.autoencoder_kl:AutoencoderKL",
            rules="omnimuse.components.autoencoder_kl:RULES",
        ),
        "scheduler": Component((), built=False),
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "strength"}),
    limits=limits,
    guidance=Guidance(),
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
