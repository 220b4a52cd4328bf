"""Facts about Qwen-Image, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipeline of diffusers. There is no
guidance input: the scale is `true_cfg_scale`, and guidance is against a negative prompt, which the model's authors
leave blank. The reference draws without guidance where nobody gives one; here the blank one stands for it.
"""

from __future__ import annotations

from omnimuse.components.entries import SCHEDULER, SQUARE, own_transformer, patched
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
MAX_SEQUENCE_LENGTH = 1024


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for."""
    return patched(MAX_SEQUENCE_LENGTH, images=1)(configs)


def combination(extra: FamilyParams) -> Combination:
    """Every token keeps the norm that it has without guidance."""
    return Combination(match_norm=True, patch=PATCH)


DEFAULTS = DiffusionParams(num_inference_steps=50, true_cfg_scale=4.0, max_sequence_length=512, strength=0.6).over(
    SQUARE
)

SPEC = Spec(
    arch="QwenImagePipeline",
    family="qwen_image",
    summary="Qwen-Image: pictures from text, with words in them; two streams, and a language model reads the prompt",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": own_transformer("qwen_image", "QwenTransformer", "QwenImageTransformer2DModel"),
        "text_encoder": Component(("Qwen2_5_VLForConditionalGeneration",), part="model.language_model"),
        "tokenizer": Component(("Qwen2Tokenizer",)),
        "vae": Component(("AutoencoderKLQwenImage",), network="omnimuse.models.qwen_image.autoencoder:QwenAutoencoder"),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"true_cfg_scale", "strength"}),
    limits=limits,
    guidance=Guidance(("true_cfg_scale",), negative=" ", how=combination),
    also=("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    variants=(
        Variant(
            "Qwen-Image",
            ("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
            DiffusionParams(height=1328, width=1328).over(DEFAULTS),
        ),
    ),
)
