"""Facts about Wan 2.1 and 2.2 text to video, without torch.

Source: the published checkpoints' `model_index.json` and the reference pipeline of diffusers. Checkpoints of one
architecture differ in what they say of themselves: `boundary_ratio` (two experts: `transformer` above that share of the
noise, `transformer_2` below) and `expand_timesteps` (a time for every token).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any, cast

from omnimuse.core import autoencoder
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import OPTIONS, Component, Configs, Limits, Spec, Variant
from omnimuse.models.wan.weights import FLOAT32

MAX_SEQUENCE_LENGTH = 512
"""Text tokens the transformers were trained with; prompts are padded to the length asked for, and the pads are read."""


def factors(configs: Configs) -> tuple[int, int]:
    """How many frames, and how many pixels a side, one latent stands for."""
    return autoencoder.factors(configs["vae"])


def patch_size(configs: Configs) -> tuple[int, int, int]:
    """Latent frames, rows and columns of one token."""
    frames, height, width = cast(Mapping[str, Any], configs["transformer"]).get("patch_size") or (1, 2, 2)
    return int(frames), int(height), int(width)


def boundary_ratio(configs: Configs) -> float | None:
    """The share of the training timesteps from which on the first expert evaluates; None for a single network.

    ModelError if the checkpoint has one of boundary and second network without the other.
    """
    ratio, second = configs[OPTIONS].get("boundary_ratio"), "transformer_2" in configs
    if (ratio is not None) != second:
        raise ModelError(
            f"model_index.json has boundary_ratio={ratio!r} and {'a' if second else 'no'} transformer_2; two experts "
            "need both and one network neither: use the model_index.json that was published with this checkpoint"
        )
    return None if ratio is None else float(cast(float, ratio))


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: whole patches, and no more of them along a side than it has positions."""
    (temporal, spatial), (_, height, width) = factors(configs), patch_size(configs)
    positions = int(cast(Mapping[str, Any], configs["transformer"]).get("rope_max_seq_len") or 1024)
    multiple = spatial * lcm(height, width)
    alone = "this checkpoint has one network for all noise levels; leave it out and choose guidance_scale"
    return Limits(
        size_multiple=multiple,
        max_side=positions * spatial * min(height, width),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        refuses={} if boundary_ratio(configs) is not None else {"guidance_scale_2": alone},
        frame_step=temporal,
        max_frames=temporal * (positions - 1) + 1,
    )


def two_experts(configs: Configs) -> str:
    """Only one published checkpoint has two experts."""
    return "it has two experts" if boundary_ratio(configs) is not None else ""


def timed(configs: Configs) -> str:
    """Only one published checkpoint gives every token a time of its own."""
    return "it has a time for every token" if configs[OPTIONS].get("expand_timesteps") else ""


def plain(configs: Configs) -> str:
    """The checkpoints that have neither."""
    return "" if two_experts(configs) or timed(configs) else "it has one network, with one time for all tokens"


def _transformer(*, optional: bool) -> Component:
    return Component(
        ("WanTransformer3DModel",),
        network="omnimuse.models.wan.transformer:WanTransformer",
        rules="omnimuse.models.wan.weights:RULES",
        keep_float32=FLOAT32,
        optional=optional,
    )


DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=5.0,
    height=480,
    width=832,
    num_frames=81,
    fps=16.0,
    num_outputs_per_prompt=1,
    max_sequence_length=MAX_SEQUENCE_LENGTH,
    output_type="pil",
)

SPEC = Spec(
    arch="WanPipeline",
    family="wan",
    summary="Wan 2.1 and 2.2: videos from text, by one network, by two experts (A14B) or with a deeper VAE (TI2V-5B)",
    tasks=("text-to-video",),
    components={
        "transformer": _transformer(optional=False),
        "transformer_2": _transformer(optional=True),
        "text_encoder": Component(("UMT5EncoderModel",)),
        "tokenizer": Component(("T5Tokenizer", "T5TokenizerFast")),
        "vae": Component(
            ("AutoencoderKLWan",),
            network="omnimuse.models.wan.autoencoder:WanAutoencoder",
            dtype="float32",  # as the reference loads it
        ),
        "scheduler": Component((), built=False),
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "guidance_scale_2", "num_frames", "fps"}),
    limits=limits,
    guidance=Guidance(("guidance_scale", "guidance_scale_2")),
    also=("WanVideoToVideoPipeline",),
    variants=(
        Variant("Wan2.1-T2V", ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"), DEFAULTS, plain),
        Variant(
            "Wan2.2-T2V-A14B",
            ("Wan-AI/Wan2.2-T2V-A14B-Diffusers",),
            DiffusionParams(num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0).over(DEFAULTS),
            two_experts,
        ),
        Variant(
            "Wan2.2-TI2V-5B",
            ("Wan-AI/Wan2.2-TI2V-5B-Diffusers",),
            DiffusionParams(height=704, width=1280, num_frames=121, fps=24.0).over(DEFAULTS),
            timed,
        ),
    ),
)
