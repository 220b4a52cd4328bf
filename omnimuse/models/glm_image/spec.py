"""Facts about GLM-Image, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. Its language
model says with tokens what is in the picture, and another network draws that; whoever asks may give these tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omnimuse.components.entries import AUTOENCODER_KL, SCHEDULER, SQUARE, own_transformer
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Size, Spec, Variant

LANGUAGE, PROCESSOR = "vision_language_encoder", "processor"
"""The components that read and write; the second has the tokenizer of the first."""
PATCH = 2  # latent pixels per token side
COARSE = 2  # patches a side of a token of the language model
MAX_SIDE = 2048
MAX_PICTURES = 4  # the reference knows no bound; of each, keys and values of every block are kept


@dataclass(frozen=True)
class GlmImageParams(FamilyParams):
    """What the language model would say, given: `prior_token_ids` of every patch of 16 x 16 pixels, row by row;
    `prior_token_image_ids`, the same of every picture that is shown, one after the other. Empty: it says them."""

    sizes = False  # small ones are tried with given tokens, as `brief` has it

    prior_token_ids: tuple[int, ...] = ()
    prior_token_image_ids: tuple[int, ...] = ()

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        given, wanted, step = len(self.prior_token_ids), patches(params, size_multiple), size_multiple // COARSE
        if self.prior_token_image_ids and not given:
            return (
                "extra.prior_token_image_ids are given and extra.prior_token_ids are not; give both, or leave both out "
                "and the language model says them"
            )
        if given in (0, wanted):
            return None
        return (
            f"extra.prior_token_ids has {given} tokens, but {params.width}x{params.height} pixels are {wanted} patches "
            f"of {step}x{step}; give one token for each, row by row, or none: then the language model says them"
        )

    def brief(self, params: DiffusionParams, pictures: Sequence[Size], size_multiple: int) -> FamilyParams:
        step = size_multiple // COARSE
        shown = sum(max(width // step, 1) * max(height // step, 1) for width, height in pictures)
        return GlmImageParams((0,) * patches(params, size_multiple), (0,) * shown)

    @classmethod
    def made_up(cls, params: DiffusionParams, size_multiple: int) -> FamilyParams | None:
        return cls((0,) * patches(params, size_multiple))


def patches(params: DiffusionParams, size_multiple: int) -> int:
    """How many patches a picture has."""
    assert params.height is not None
    assert params.width is not None
    return (params.height * COARSE // size_multiple) * (params.width * COARSE // size_multiple)


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: sides are whole tokens of the language model."""
    return Limits(
        size_multiple=COARSE * PATCH * factor(configs["vae"]),
        max_side=MAX_SIDE,
        max_images=MAX_PICTURES,
        rounding="down",
        max_sequence_length=2048,
    )


DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=1.5, max_sequence_length=2048).over(SQUARE)

SPEC = Spec(
    arch="GlmImagePipeline",
    family="glm_image",
    summary="GLM-Image: pictures from a text, and others changed by one; a language model says first what is in them",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": own_transformer("glm_image", "GlmImageTransformer", "GlmImageTransformer2DModel"),
        "text_encoder": Component(("T5EncoderModel",)),
        "tokenizer": Component(("ByT5Tokenizer",)),
        LANGUAGE: Component(
            ("GlmImageForConditionalGeneration",),
            network="omnimuse.models.glm_image.language:GlmImageWriter",
            rules="omnimuse.models.glm_image.weights:LANGUAGE_RULES",
            optional=True,
        ),
        PROCESSOR: Component(("GlmImageProcessor",), part="tokenizer", optional=True),
        "vae": AUTOENCODER_KL,
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(given=False),
    extra=GlmImageParams,
    variants=(Variant("GLM-Image", ("zai-org/GLM-Image",), DEFAULTS),),
)
