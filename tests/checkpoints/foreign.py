"""Tiny random checkpoints of pipelines that no family of ours covers, in the layout that diffusers saves.

`FOREIGN` has one entry for each, with a cheap request and a `build(folder)`. Widths are 16 to 64; tokenizers are real,
with few words. What they draw is noise, but the same noise as the library's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
)

from omnimuse.core.params import DiffusionParams
from omnimuse.loader.components import quiet
from tests.checkpoints import encoders, parts, wan
from tests.checkpoints.wishes import photo

PAIRS = ("original_size", "crops_coords_top_left")
"""Parameters that the library wants as tuples, and JSON has as lists."""

Component = Callable[[], Any]
"""Makes a network to be drawn, or something without weights that can be saved."""


@dataclass(frozen=True)
class Foreign:
    """A pipeline class, what its tiny checkpoint is made of, and a request that every one of its parameters reads.

    `parts` makes each component; `null` are listed as null; `options` are other entries of the index. One with a
    `picture` makes what it does of that, and reads no prompt.
    """

    arch: str
    parts: Mapping[str, Component]
    params: DiffusionParams
    null: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    negative: str | None = "grey"
    picture: Image.Image | None = None

    def build(self, folder: Path, seed: int = 0) -> Path:
        """Write the checkpoint into `folder` and return it."""
        components: dict[str, tuple[str, str] | None] = dict.fromkeys(self.null)
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in self.parts.items():
            with quiet("diffusers"), quiet("transformers"):
                made = make()
                if isinstance(made, nn.Module):
                    parts.save_module(folder, name, seed, make)
                else:
                    made.save_pretrained(folder / name)
            library = self.libraries.get(name, type(made).__module__.partition(".")[0])
            components[name] = (library, type(made).__name__)
        parts.write_index(folder, self.arch, components, self.options)
        return folder

    def arguments(self) -> dict[str, Any]:
        """What the library's own call takes for the request, besides prompt, generator and output type."""
        names = ("num_inference_steps", "guidance_scale", "height", "width", "num_frames", "max_sequence_length")
        lasting = {} if self.params.seconds is None else {"audio_duration_s": self.params.seconds}
        chosen = {name: value for name in names if (value := getattr(self.params, name)) is not None}
        if self.params.fps is not None:
            chosen["frame_rate" if self.arch == "LTXPipeline" else "fps"] = int(self.params.fps)
        negative = {} if self.negative is None else {"negative_prompt": self.negative}
        extra: Mapping[str, Any] = self.params.extra or {}  # type: ignore[assignment]
        own = {name: tuple(value) if name in PAIRS else value for name, value in extra.items()}
        return {**chosen, **lasting, **negative, **own}

    def reference(self, folder: Path, prompt: str, seed: int, output_type: str = "pt") -> Tensor:
        """What the library gives when it is called directly, float32."""
        with quiet("diffusers"), quiet("transformers"):
            pipe = getattr(diffusers, self.arch).from_pretrained(folder, dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(seed)
            what = {"prompt": prompt} if self.picture is None else {"image": self.picture}
            made = pipe(**what, generator=generator, output_type=output_type, **self.arguments())[0][0]
        assert isinstance(made, Tensor)
        return made


def _clip(projected: bool = False, width: int = 32) -> Component:
    config = CLIPTextConfig(
        vocab_size=len(encoders.clip_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int = encoders.TEXT_WIDTH) -> T5EncoderModel:
    return encoders.t5_encoder(len(encoders.t5_tokenizer()), width)


def _unet(width: int, pooled: int | None = None) -> diffusers.UNet2DConditionModel:
    """Two levels; with `pooled` it also reads a pooled text and sizes."""
    more: dict[str, Any] = {}
    if pooled is not None:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": pooled + 6 * 8,
            "use_linear_projection": True,
        }
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        **more,
    )


def _kl(channels: int = 4, scaling: float = 0.18215) -> diffusers.AutoencoderKL:
    """Factor 8, with quant convolutions, as the first diffusion models had it."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        scaling_factor=scaling,
    )


def _ltx_vae() -> diffusers.AutoencoderKLLTXVideo:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )


def _cog_vae() -> diffusers.AutoencoderKLCogVideoX:
    """Factor 8, and 4 frames to one."""
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )


def _film_unet() -> diffusers.UNetSpatioTemporalConditionModel:
    """Two levels, over three frames."""
    return diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(2, 2),
        num_frames=3,
    )


def _film_vae() -> diffusers.AutoencoderKLTemporalDecoder:
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 32, 32, 32), layers_per_block=1
    )


def _sight() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        projection_dim=16,
    )
    return CLIPVisionModelWithProjection(config)


def _params(**chosen: Any) -> DiffusionParams:
    return DiffusionParams(num_inference_steps=3, guidance_scale=4.0, height=64, width=96, seed=7, **chosen)


FOREIGN = (
    Foreign(
        arch="StableDiffusionPipeline",
        parts={
            "vae": _kl,
            "text_encoder": _clip(),
            "tokenizer": encoders.clip_tokenizer,
            "unet": lambda: _unet(32),
            "scheduler": lambda: diffusers.PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
            ),
        },
        null=("safety_checker", "feature_extractor", "image_encoder"),
        options={"requires_safety_checker": False},
        params=_params(extra={"guidance_rescale": 0.3}),
    ),
    Foreign(
        arch="StableDiffusionXLPipeline",
        parts={
            "vae": lambda: _kl(scaling=0.13025),
            "text_encoder": _clip(),
            "text_encoder_2": _clip(projected=True, width=24),
            "tokenizer": encoders.clip_tokenizer,
            "tokenizer_2": encoders.clip_tokenizer,
            "unet": lambda: _unet(56, pooled=24),
            "scheduler": lambda: diffusers.EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
        },
        null=("feature_extractor", "image_encoder"),
        options={"force_zeros_for_empty_prompt": True},
        params=_params(extra={"original_size": [128, 128], "crops_coords_top_left": [8, 0]}),
        negative=None,
    ),
    Foreign(
        arch="AuraFlowPipeline",
        parts={
            "vae": lambda: _kl(scaling=0.13025),
            "text_encoder": lambda: encoders.umt5_encoder(len(encoders.t5_tokenizer())),
            "tokenizer": encoders.t5_tokenizer,
            "transformer": lambda: diffusers.AuraFlowTransformer2DModel(
                sample_size=16,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=wan.TEXT_WIDTH,
                caption_projection_dim=32,
                pos_embed_max_size=256,
            ),
            "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        },
        params=_params(max_sequence_length=48, extra={"sigmas": [1.0, 0.7, 0.2]}),
    ),
    Foreign(
        arch="CogVideoXPipeline",
        parts={
            "vae": _cog_vae,
            "text_encoder": _t5,
            "tokenizer": encoders.t5_tokenizer,
            "transformer": lambda: diffusers.CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=8,
                text_embed_dim=encoders.TEXT_WIDTH,
                num_layers=1,
                sample_width=12,
                sample_height=8,
                sample_frames=9,
                max_text_seq_length=32,
            ),
            "scheduler": diffusers.CogVideoXDDIMScheduler,
        },
        params=_params(num_frames=9, max_sequence_length=32),
    ),
    Foreign(
        arch="LTXPipeline",
        parts={
            "vae": _ltx_vae,
            "text_encoder": _t5,
            "tokenizer": encoders.t5_tokenizer,
            "transformer": lambda: diffusers.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=16,
                cross_attention_dim=32,
                num_layers=2,
                caption_channels=encoders.TEXT_WIDTH,
            ),
            "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        },
        params=_params(num_frames=9, fps=24.0, max_sequence_length=32),
    ),
    Foreign(
        arch="SanaPipeline",
        parts={
            "vae": parts.dc_autoencoder,
            "text_encoder": encoders.gemma2_encoder,
            "tokenizer": encoders.gemma_tokenizer,
            "transformer": lambda: diffusers.SanaTransformer2DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=8,
                num_layers=2,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=24,
                sample_size=32,
            ),
            "scheduler": lambda: diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        },
        params=_params(extra={"use_resolution_binning": False, "complex_human_instruction": ["Say it."]}),
    ),
    Foreign(
        arch="LongCatAudioDiTPipeline",
        parts={
            "vae": lambda: diffusers.LongCatAudioDiTVae(
                channels=8,
                c_mults=[1, 2],
                strides=[2, 2],
                latent_dim=8,
                encoder_latent_dim=16,
                downsampling_ratio=4,
                sample_rate=1000,
            ),
            "text_encoder": lambda: encoders.umt5_encoder(len(encoders.t5_tokenizer())),
            "tokenizer": encoders.t5_tokenizer,
            "transformer": lambda: diffusers.LongCatAudioDiTTransformer(
                dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=wan.TEXT_WIDTH, latent_dim=8
            ),
            "scheduler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        },
        params=DiffusionParams(num_inference_steps=3, guidance_scale=4.0, seed=7, seconds=2.0),
    ),
    Foreign(
        arch="StableVideoDiffusionPipeline",
        parts={
            "vae": _film_vae,
            "image_encoder": _sight,
            "unet": _film_unet,
            "feature_extractor": CLIPImageProcessor,
            "scheduler": lambda: diffusers.EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                timestep_spacing="leading",
                timestep_type="continuous",
                use_karras_sigmas=True,
                sigma_min=0.002,
                sigma_max=700.0,
                steps_offset=1,
            ),
        },
        params=DiffusionParams(
            num_inference_steps=3, height=64, width=96, num_frames=4, fps=6.0, seed=7, extra={"motion_bucket_id": 90}
        ),
        negative=None,
        picture=photo(80, 60),
    ),
)
"""Nine pipelines: three with a UNet, of which one films a picture, five with a transformer for pictures or videos, one
of sound."""


def with_class(folder: Path, target: Path, arch: str, **parts_: Any) -> Path:
    """A copy of the checkpoint in `folder` whose index names the class `arch`, and `parts_` besides."""
    shutil.copytree(folder, target)
    index = target / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": arch, **parts_}))
    return target


def with_safety_checker(folder: Path, target: Path, threshold: float) -> Path:
    """A copy of a Stable Diffusion checkpoint that refuses pictures above `threshold`: -1 refuses all, 1 none."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    made = with_class(
        folder,
        target,
        "StableDiffusionPipeline",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],  # what it was called when such folders were saved
    )
    with quiet("diffusers"), quiet("transformers"):
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=16))
        for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            nn.init.constant_(thresholds, threshold)
        for embeddings in (checker.concept_embeds, checker.special_care_embeds):
            nn.init.normal_(embeddings, generator=torch.Generator().manual_seed(0))
        checker.save_pretrained(made / "safety_checker")
        side = {"height": 32, "width": 32}
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(made / "feature_extractor")
    return made


def foreign(arch: str) -> Foreign:
    """The entry of `arch`."""
    return next(entry for entry in FOREIGN if entry.arch == arch)
