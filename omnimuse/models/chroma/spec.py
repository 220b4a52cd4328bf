"""Facts about Chroma, without torch.

Source: the reference pipeline of diffusers and its documentation.
"""

from __future__ import annotations

from omnimuse.components.entries import T5, latent_model
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

MAX_SIDE = 4096  # the positions know no bound; beyond this the model was never seen to draw


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. Latents are patched 2 x 2: sides are multiples of twice the VAE's factor."""
    return Limits(size_multiple=2 * factor(configs["vae"]), max_side=MAX_SIDE, max_sequence_length=512)


DEFAULTS = DiffusionParams(
    num_inference_steps=35,
    guidance_scale=5.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=512,
    output_type="pil",
)

SPEC = Spec(
    arch="ChromaPipeline",
    family="chroma",
    summary="Chroma: pictures from text, separate streams of text and image that become one, guided by a second text",
    tasks=("text-to-image",),
    components=latent_model(
        Component(
            ("ChromaTransformer2DModel",),
            network="omnimuse.models.chroma.transformer:ChromaTransformer",
            rules="omnimuse.models.chroma.weights:RULES",
        ),
        T5,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(),
    variants=(
        Variant(
            "Chroma1-HD",
            ("lodestones/Chroma1-HD",),
            DiffusionParams(num_inference_steps=40, guidance_scale=3.0).over(DEFAULTS),
        ),
        Variant("Chroma1-Base", ("lodestones/Chroma1-Base",), DEFAULTS),
    ),
)
