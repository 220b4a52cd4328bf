"""Pipelines with stages of their own: before the loop, in its hooks, after it, and in place of a stock one."""

from __future__ import annotations

import torch

from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import OutputBatch, Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages import (
    ConditioningStage,
    DecodingStage,
    DenoisingStage,
    ImageVAEEncodingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    TextEncodingStage,
)
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators as V
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs

from .medium_configs import (
    MediumEditPipelineConfig,
    MediumEditSamplingParams,
    MediumPipelineConfig,
    MediumSamplingParams,
)


class JoinTextsStage(ConditioningStage):
    """Two encoders side by side, and the empty place of a third one behind them."""

    def joined(self, embeds, width, empty):
        both = torch.cat(embeds, dim=-1)
        both = torch.nn.functional.pad(both, (0, width - both.shape[-1]))
        return torch.cat([both, both.new_zeros(both.shape[0], empty, width)], dim=1)

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        width = server_args.pipeline_config.dit_config.arch_config.joint_attention_dim
        empty = batch.extra["empty_tokens"]
        batch.prompt_embeds = [self.joined(batch.prompt_embeds, width, empty)]
        batch.pooled_embeds = [torch.cat(batch.pooled_embeds, dim=-1)]
        if batch.do_classifier_free_guidance:
            batch.negative_prompt_embeds = [self.joined(batch.negative_prompt_embeds, width, empty)]
            batch.neg_pooled_embeds = [torch.cat(batch.neg_pooled_embeds, dim=-1)]
        return batch

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        result = VerificationResult()
        result.add_check("prompt_embeds", batch.prompt_embeds, V.list_of_tensors_min_dims(3))
        return result


class WatchedDenoisingStage(DenoisingStage):
    """Counts its steps, and combines the two predictions itself."""

    def _prepare_denoising_loop(self, batch: Req, server_args: ServerArgs):
        self.steps = 0
        return super()._prepare_denoising_loop(batch, server_args)

    def _predict_noise(self, current_model, latent_model_input, t_expand, prompt_embeds, **kwargs):
        kwargs.pop("target_dtype")
        kwargs.pop("guidance")
        made = current_model(
            hidden_states=latent_model_input,
            encoder_hidden_states=prompt_embeds[0],
            timestep=t_expand,
            return_dict=False,
            **kwargs,
        )
        self.steps += 1
        return made[0]

    def _post_denoising_loop(self, batch, latents, trajectory_latents, trajectory_timesteps, server_args):
        super()._post_denoising_loop(batch, latents, trajectory_latents, trajectory_timesteps, server_args)
        batch.extra["calls"] = self.steps


class CombinedDenoisingStage(DenoisingStage):
    """Has both predictions in one call, which it puts together itself."""

    def _predict_noise_with_cfg(
        self,
        current_model,
        latent_model_input,
        t_expand,
        batch,
        timestep_index,
        attn_metadata,
        target_dtype,
        current_guidance_scale,
        image_kwargs,
        pos_cond_kwargs,
        neg_cond_kwargs,
        server_args,
        guidance,
        latents,
    ):
        if not batch.do_classifier_free_guidance:
            embeds, pooled = batch.prompt_embeds[0], pos_cond_kwargs["pooled_projections"]
        else:
            embeds = torch.cat([batch.negative_prompt_embeds[0], batch.prompt_embeds[0]])
            pooled = torch.cat([neg_cond_kwargs["pooled_projections"], pos_cond_kwargs["pooled_projections"]])
        count = len(embeds)
        made = current_model(
            hidden_states=latent_model_input.repeat(count, 1, 1, 1),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=t_expand.repeat(count),
        ).sample
        if count == 1:
            return made
        negative, positive = made.chunk(2)
        return negative + current_guidance_scale * (positive - negative)


class WholeDenoisingStage(DenoisingStage):
    """Has the loop itself, in a `forward` of its own."""

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        prepared = self._prepare_denoising_loop(batch, server_args)
        latents = prepared["latents"]
        with self.progress_bar(total=len(batch.timesteps)) as progress_bar:
            for t in batch.timesteps:
                branches = [(batch.prompt_embeds[0], prepared["pos_cond_kwargs"])]
                if batch.do_classifier_free_guidance:
                    branches.append((batch.negative_prompt_embeds[0], prepared["neg_cond_kwargs"]))
                made = [
                    self.transformer(latents, encoder_hidden_states=embeds, timestep=t[None], **kwargs).sample
                    for embeds, kwargs in branches
                ]
                noise = made[0] if len(made) == 1 else made[1] + batch.guidance_scale * (made[0] - made[1])
                latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
                progress_bar.update()
        batch.latents = latents
        return batch


class UnscaleStage(PipelineStage):
    """Latents as the autoencoder made them, after the loop."""

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        arch = server_args.pipeline_config.vae_config.arch_config
        assert batch.extra.get("calls", 1) > 0
        batch.latents = batch.latents / arch.scaling_factor + arch.shift_factor
        return batch


class PlainDecodingStage(DecodingStage):
    """Takes them as they are."""

    def scale_and_shift(self, vae_arch_config, latents, server_args):
        return latents


class ClampStage(PipelineStage):
    """A last stage of its own, after the decoder."""

    def forward(self, batch: OutputBatch, server_args: ServerArgs) -> OutputBatch:
        batch.output = batch.output.clamp(0, 1)
        return batch


class MediumPipeline(ComposedPipelineBase):
    pipeline_name = "ComposedMediumPipeline"
    pipeline_config_cls = MediumPipelineConfig
    sampling_params_cls = MediumSamplingParams

    _required_config_modules = [
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "vae",
        "transformer",
        "scheduler",
    ]
    denoising_stage = WatchedDenoisingStage

    def add_picture_stages(self):
        self.add_standard_timestep_preparation_stage()
        self.add_standard_latent_preparation_stage()

    def create_pipeline_stages(self, server_args: ServerArgs):
        self.add_stage(InputValidationStage())
        encoders = [self.get_module(f"text_encoder{each}") for each in ("", "_2")]
        tokenizers = [self.get_module(f"tokenizer{each}") for each in ("", "_2")]
        self.add_stage(TextEncodingStage(encoders, tokenizers), "prompt_encoding_stage_primary")
        self.add_stage(JoinTextsStage())
        self.add_picture_stages()
        self.add_stage(self.denoising_stage(self.get_module("transformer"), self.get_module("scheduler"), self))
        self.add_stages([(UnscaleStage(), "unscale"), PlainDecodingStage(self.get_module("vae")), ClampStage()])


class MediumCombinedPipeline(MediumPipeline):
    pipeline_name = "ComposedMediumCombinedPipeline"
    denoising_stage = CombinedDenoisingStage


class MediumWholePipeline(MediumPipeline):
    pipeline_name = "ComposedMediumWholePipeline"
    denoising_stage = WholeDenoisingStage


class NoisedPictureStage(LatentPreparationStage):
    """The picture with as much noise as its share of the schedule leaves."""

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        clean = batch.image_latent
        if clean is None:
            return super().forward(batch, server_args)
        batch = super().forward(batch, server_args)
        steps, strength = batch.num_inference_steps, batch.extra["strength"]
        first = int(max(steps - min(steps * strength, steps), 0))
        batch.timesteps = batch.timesteps[first:]
        self.scheduler.set_begin_index(first)
        batch.latents = self.scheduler.scale_noise(clean, batch.timesteps[:1], batch.latents)
        batch.image_latent = None
        return batch


class PictureStage(ImageVAEEncodingStage):
    """Only where there is a picture."""

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        return VerificationResult()

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        return VerificationResult()

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        return batch if batch.pil_image is None else super().forward(batch, server_args)


class MediumEditPipeline(MediumPipeline):
    pipeline_name = "ComposedMediumEditPipeline"
    pipeline_config_cls = MediumEditPipelineConfig
    sampling_params_cls = MediumEditSamplingParams
    denoising_stage = DenoisingStage

    def add_picture_stages(self):
        self.add_stage(PictureStage(vae=self.get_module("vae")), "image_encoding_stage_primary")
        self.add_standard_timestep_preparation_stage()
        self.add_stage(NoisedPictureStage(self.get_module("scheduler"), self.get_module("transformer")))


EntryClass = [MediumPipeline, MediumCombinedPipeline, MediumWholePipeline, MediumEditPipeline]
