"""Facts about GLM-Image, the part that draws, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. Its language
model, which says with one token per patch what is in the picture, is not here yet: whoever asks gives these tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnimuse.core.autoencoder import factor
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
COARSE = 2  # patches a side of a token of the language model
MAX_SIDE = 2048
MAX_PICTURES = 4  # the reference knows no bound; of each, keys and values of every block are kept
SHIFT = {"base_image_seq_len": 256, "base_shift": 0.25, "max_shift": 0.75}
"""What the published scheduler has; the pipeline's own rule for its shift is made of it."""


@dataclass(frozen=True)
class GlmImageParams(FamilyParams):
    """`prior_token_ids`: what the language model says of every patch of 16 x 16 pixels, row by row;
    `prior_token_image_ids`: the same of every picture that is shown, one after the other."""

    prior_token_ids: tuple[int, ...] = ()
    prior_token_image_ids: tuple[int, ...] = ()

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        given, wanted, step = len(self.prior_token_ids), patches(params, size_multiple), size_multiple // COARSE
        if given == wanted:
            return None
        return (
            f"extra.prior_token_ids has {given} tokens, but {params.width}x{params.height} pixels are {wanted} patches "
            f"of {step}x{step}; give one token for each, row by row, as this model's own language model makes them, "
            "which omnimuse does not run yet"
        )

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
    scheduler = configs["scheduler"]
    if differing := [name for name, value in SHIFT.items() if scheduler.get(name, value) != value]:
        name = differing[0]
        raise ModelError(f"scheduler config: {name}={scheduler[name]!r} is not supported; only {SHIFT[name]!r} is")
    return Limits(
        size_multiple=COARSE * PATCH * factor(configs["vae"]),
        max_side=MAX_SIDE,
        max_images=MAX_PICTURES,
        rounding="down",
        max_sequence_length=2048,
    )


DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=1.5,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=2048,
    output_type="pil",
)

SPEC = Spec(
    arch="GlmImagePipeline",
    family="glm_image",
    summary="GLM-Image, the part that draws: pictures from what a language model says of every patch, and quoted words",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": Component(
            ("GlmImageTransformer2DModel",),
            network="omnimuse.models.glm_image.transformer:GlmImageTransformer",
            rules="omnimuse.models.glm_image.weights:RULES",
        ),
        "text_encoder": Component(("T5EncoderModel",)),
        "tokenizer": Component(("ByT5Tokenizer",)),
        "vision_language_encoder": Component((), built=False, optional=True),
        "processor": Component((), built=False, optional=True),
        "vae": Component(
            ("AutoencoderKL",),
            network="omnimuse.components.autoencoder_kl:AutoencoderKL",
            rules="omnimuse.components.autoencoder_kl:RULES",
        ),
        "scheduler": Component((), built=False),
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(given=False),
    extra=GlmImageParams,
    variants=(Variant("GLM-Image", ("zai-org/GLM-Image",), DEFAULTS),),
)
