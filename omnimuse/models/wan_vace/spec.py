"""Facts about Wan VACE, without torch: a kind of Wan that is given a video, a mask over it, and pictures to show.

Source: the published checkpoints' configurations and cards, and the reference pipeline of diffusers. That of 2.2 is by
the authors of VideoX-Fun, whose examples (`examples/wan2.2_vace_fun`) have Wan 2.1's defaults: 50 steps, a scale of 5
for both experts, 81 frames of 832x480 pixels, 16 a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omnimuse.components.entries import own_transformer
from omnimuse.core.errors import ModelError
from omnimuse.core.params import FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Variant
from omnimuse.models.wan import spec as wan
from omnimuse.models.wan.spec import boundary_ratio, factors, latent_channels

MAX_PICTURES = 4
"""Pictures that are shown; each costs what a latent frame of the video does."""


@dataclass(frozen=True)
class VaceParams(FamilyParams):
    """The extension: how much what is given counts; 0: not at all."""

    conditioning_scale: float = field(default=1.0, metadata={"low": 0, "high": 10})


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for; ModelError for a network that is not given what this pipeline gives."""
    transformer = configs["transformer"]
    needed = 2 * latent_channels(configs) + factors(configs)[1] ** 2  # what is kept, what is not, which it is
    if (given := transformer.get("vace_in_channels", 96)) != needed:
        raise ModelError(
            f"transformer/config.json: vace_in_channels={given}; with this autoencoder a network is given {needed}: "
            "use the files of one checkpoint"
        )
    plain = wan.limits(configs)
    refuses = {name: why for name, why in plain.refuses.items() if name != "strength"}
    return replace(plain, max_images=MAX_PICTURES, max_videos=1, masks_videos=True, refuses=refuses)


def _of_vace(transformer: Component) -> Component:
    """That entry for networks of this kind."""
    own = own_transformer("wan_vace", "WanVaceTransformer", "WanVACETransformer3DModel")
    return replace(transformer, classes=own.classes, network=own.network, rules=own.rules, tells=None)


def two_experts(configs: Configs) -> str:
    """A reason for the checkpoint of 2.2."""
    return "it has two experts" if boundary_ratio(configs) is not None else ""


SPEC = replace(
    wan.SPEC,
    arch="WanVACEPipeline",
    family="wan_vace",
    summary="Wan VACE: videos from a video, a mask over it, pictures to show, or text alone",
    tasks=("text-to-video", "image-to-video", "video-to-video"),
    components={
        **{name: part for name, part in wan.SPEC.components.items() if not name.startswith("image_")},
        **{name: _of_vace(wan.SPEC.components[name]) for name in ("transformer", "transformer_2")},
    },
    supported=wan.SPEC.supported - {"strength"},
    limits=limits,
    also=(),
    extra=VaceParams,
    variants=(
        Variant("Wan2.1-VACE-1.3B", ("Wan-AI/Wan2.1-VACE-1.3B-diffusers",), wan.DEFAULTS),
        Variant("Wan2.1-VACE-14B", ("Wan-AI/Wan2.1-VACE-14B-diffusers",), wan.LARGE),
        Variant("Wan2.2-VACE-Fun-A14B", ("linoyts/Wan2.2-VACE-Fun-14B-diffusers",), wan.DEFAULTS, two_experts),
    ),
)
