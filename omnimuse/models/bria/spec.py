"""Facts about Bria 3.2, without torch.

Source: the checkpoint's card and the reference pipeline of diffusers. Its `normalize` and `clip_value` are refused: the
deviations that they go by are those of all pictures of a call together.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.components.entries import AUTOENCODER_KL, SQUARE, T5, latent_model, own_transformer, patched
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Spec, Variant

DEFAULTS = DiffusionParams(num_inference_steps=30, guidance_scale=5.0, max_sequence_length=128).over(SQUARE)

SPEC = Spec(
    arch="BriaPipeline",
    family="bria",
    summary="Bria 3.2: pictures from text, separate streams of text and image that become one",
    tasks=("text-to-image",),
    components=latent_model(
        own_transformer("bria", "BriaTransformer", "BriaTransformer2DModel"),
        T5,
        vae=replace(AUTOENCODER_KL, dtype="float32"),  # as the reference computes it for the published one,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=patched(512),
    guidance=Guidance(),
    variants=(Variant("BRIA-3.2", ("briaai/BRIA-3.2",), DEFAULTS),),
)
