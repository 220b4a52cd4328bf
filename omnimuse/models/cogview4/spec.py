"""Facts about CogView4, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from omnimuse.components.entries import SQUARE, Reader, latent_model, own_transformer, patched
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

GLM = Reader(Component(("GlmModel",)), Component(("PreTrainedTokenizerFast", "TokenizersBackend")))


@dataclass(frozen=True)
class CogView4Params(FamilyParams):
    """What the network is told of the picture, in pixels: the height and width that it had before it was scaled
    (`original_size`; empty: those that it is drawn in), and the corner, from above and from the left, at which it was
    cut from that (`crops_coords_top_left`)."""

    sizes = False

    original_size: tuple[int, ...] = ()
    crops_coords_top_left: tuple[int, ...] = (0, 0)

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if len(self.original_size) not in (0, 2):
            return f"extra.original_size has {len(self.original_size)} numbers; give a height and a width, or none"
        if len(self.crops_coords_top_left) != 2:
            return f"extra.crops_coords_top_left has {len(self.crops_coords_top_left)} numbers; give two, such as 0, 0"
        return None


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: its transformer says how many patches a side may have. ModelError for an
    autoencoder whose latents are shifted: the published ones are not, and the reference would pass that over.
    """
    if shift := configs["vae"].get("shift_factor"):
        raise ModelError(
            f"vae/config.json: shift_factor={shift!r} is not supported, latents of CogView4 are not shifted; use the "
            "autoencoder that was published with this model"
        )
    usual, most = patched(1024)(configs), configs["transformer"]["pos_embed_max_size"]
    assert isinstance(most, int)
    return replace(usual, max_side=most * usual.size_multiple)


DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=3.5, max_sequence_length=1024).over(SQUARE)

SPEC = Spec(
    arch="CogView4Pipeline",
    family="cogview4",
    summary="CogView4: pictures from English and Chinese text, which go through one network with the image",
    tasks=("text-to-image",),
    components=latent_model(own_transformer("cogview4", "CogView4Transformer", "CogView4Transformer2DModel"), GLM),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(),
    extra=CogView4Params,
    variants=(Variant("CogView4-6B", ("zai-org/CogView4-6B", "THUDM/CogView4-6B"), DEFAULTS),),
)
