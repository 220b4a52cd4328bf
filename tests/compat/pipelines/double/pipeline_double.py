"""A pipeline around a transformer with two lists of blocks, written as the guide has it: whole, and in four methods."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from omnimuse.compat.vllm.model_executor.models.utils import AutoWeightsLoader
from omnimuse.compat.vllm_omni.diffusion.cache.cache_dit_backend import CUSTOM_DIT_ENABLERS
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput, OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.utils import get_local_device
from omnimuse.compat.vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsStepExecution
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.diffusion.utils.tf_utils import get_transformer_config_kwargs
from omnimuse.compat.vllm_omni.diffusion.worker.input_batch import InputBatch
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState

from .double_transformer import DoubleTransformer2DModel


def get_double_post_process_func(od_config: OmniDiffusionConfig):
    with open(os.path.join(od_config.model, "vae/config.json")) as file:
        scale = 2 ** (len(json.load(file)["block_out_channels"]) - 1)
    image_processor = VaeImageProcessor(vae_scale_factor=2 * scale)

    def post_process_func(images: Tensor, output_type: str = "pil"):
        return image_processor.postprocess(images, output_type=output_type)

    return post_process_func


def enable_cache_for_double(pipeline, cache_config):
    import cache_dit

    db_cache_config = cache_dit.DBCacheConfig(
        num_inference_steps=None,
        Fn_compute_blocks=cache_config.Fn_compute_blocks,
        Bn_compute_blocks=cache_config.Bn_compute_blocks,
        max_warmup_steps=cache_config.max_warmup_steps,
        max_cached_steps=cache_config.max_cached_steps,
        max_continuous_cached_steps=cache_config.max_continuous_cached_steps,
        residual_diff_threshold=cache_config.residual_diff_threshold,
    )
    pattern = cache_dit.ForwardPattern.Pattern_1
    network = pipeline.transformer
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=network,
            blocks=[network.transformer_blocks, network.single_transformer_blocks],
            forward_pattern=[pattern, pattern],
        ),
        cache_config=db_cache_config,
    )

    def refresh_cache_context(pipeline, num_inference_steps, verbose=True):
        cache_dit.refresh_context(pipeline.transformer, num_inference_steps=num_inference_steps, verbose=verbose)

    return refresh_cache_context


CUSTOM_DIT_ENABLERS["DoublePipeline"] = enable_cache_for_double


class DoublePipeline(nn.Module, CFGParallelMixin):
    """A CLIP and a T5 encoder, one transformer, guidance that it has learnt, and perhaps true guidance, too."""

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        super().__init__()
        self.od_config = od_config
        self.device = get_local_device()
        model, given = od_config.model, {"local_files_only": os.path.exists(od_config.model)}
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler", **given)
        for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", T5EncoderModel)):
            encoder = kind.from_pretrained(model, subfolder=name, dtype=od_config.dtype, **given)
            setattr(self, name, encoder.to(self.device))
        self.tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **given)
        self.tokenizer_2 = AutoTokenizer.from_pretrained(model, subfolder="tokenizer_2", **given)
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=od_config.dtype, **given)
        self.vae = vae.to(self.device)
        kwargs = get_transformer_config_kwargs(od_config.tf_model_config, DoubleTransformer2DModel)
        self.transformer = DoubleTransformer2DModel(od_config=od_config, **kwargs)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=model, subfolder="transformer", revision=None, prefix="transformer.", fall_back_to_pt=True
            )
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights)

    def encode_prompt(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        """Embeds [1, S, D], and a pooled one [1, P]."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer([prompt], max_length=self.tokenizer.model_max_length, **options).input_ids
        pooled = self.text_encoder(ids.to(self.device)).pooler_output
        ids = self.tokenizer_2([prompt], max_length=length, **options).input_ids
        return self.text_encoder_2(ids.to(self.device))[0], pooled

    def sizes(self, sampling) -> tuple[int, int]:
        cell = 2 * self.vae_scale_factor
        return (sampling.height or 1024) // cell, (sampling.width or 1024) // cell

    def prepare_latents(self, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        shape = (1, 16, 2 * height, 2 * width)
        noise = randn_tensor(shape, generator=generator, device=self.device, dtype=self.od_config.dtype)
        packed = noise.unflatten(2, (height, 2)).unflatten(4, (width, 2)).permute(0, 2, 4, 1, 3, 5)
        return packed.reshape(1, height * width, 64)

    def ids(self, height: int, width: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return (
            torch.stack([torch.zeros_like(rows), rows, columns], -1)
            .reshape(-1, 3)
            .to(self.device, self.od_config.dtype)
        )

    def set_timesteps(self, scheduler, steps: int, tokens: int) -> Tensor:
        config = scheduler.config
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self.device, mu=mu)
        return scheduler.timesteps

    def branches(self, latents, timestep, texts, grid, guidance: float) -> list[dict | None]:
        shared = {
            "hidden_states": latents,
            "timestep": timestep.expand(latents.shape[0]) / 1000,
            "img_ids": self.ids(*grid),
            "guidance": torch.full((latents.shape[0],), guidance, device=self.device),
        }
        return [
            None
            if text is None
            else {
                **shared,
                "encoder_hidden_states": text[0],
                "pooled_projections": text[1],
                "txt_ids": torch.zeros(text[0].shape[1], 3, device=self.device, dtype=text[0].dtype),
            }
            for text in texts
        ]

    def diffuse(self, latents, texts, grid, guidance: float, scale: float) -> Tensor:
        for t in self.scheduler.timesteps:
            positive, negative = self.branches(latents, t, texts, grid, guidance)
            noise_pred = self.predict_noise_maybe_with_cfg(
                do_true_cfg=negative is not None,
                true_cfg_scale=scale,
                positive_kwargs=positive,
                negative_kwargs=negative,
                cfg_normalize=False,
            )
            latents = self.scheduler_step_maybe_with_cfg(noise_pred, t, latents, negative is not None)
        return latents

    def decode(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        latents = latents.unflatten(1, grid).unflatten(3, (16, 2, 2)).permute(0, 3, 1, 4, 2, 5)
        latents = latents.flatten(4, 5).flatten(2, 3)
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]

    def texts(self, prompt, sampling) -> list[tuple[Tensor, Tensor] | None]:
        words = {"prompt": prompt} if isinstance(prompt, str) else prompt
        negative, length = words.get("negative_prompt"), sampling.max_sequence_length or 512
        guided = negative is not None and (sampling.true_cfg_scale or 1.0) > 1
        return [
            self.encode_prompt(words.get("prompt") or "", length),
            self.encode_prompt(negative, length) if guided else None,
        ]

    @torch.no_grad()
    def forward(self, req: OmniDiffusionRequest) -> DiffusionOutput:
        sampling = req.sampling_params
        grid = self.sizes(sampling)
        texts = self.texts(req.prompts[0], sampling)
        latents = self.prepare_latents(*grid, sampling.generator)
        self.set_timesteps(self.scheduler, sampling.num_inference_steps or 28, latents.shape[1])
        latents = self.diffuse(latents, texts, grid, sampling.guidance_scale or 3.5, sampling.true_cfg_scale or 1.0)
        return DiffusionOutput(output=self.decode(latents, grid))


class DoubleStepPipeline(DoublePipeline, SupportsStepExecution):
    """The same in four methods."""

    def prepare_encode(self, state: StepRequestState, **kwargs) -> StepRequestState:
        sampling = state.sampling
        state.extra["grid"] = self.sizes(sampling)
        positive, negative = self.texts(state.prompt, sampling)
        state.prompt_embeds, state.extra["pooled"] = positive
        state.do_true_cfg = negative is not None
        if negative is not None:
            state.negative_prompt_embeds, state.extra["negative_pooled"] = negative
        state.latents = self.prepare_latents(*state.extra["grid"], sampling.generator)
        state.scheduler = copy.deepcopy(self.scheduler)
        steps = sampling.num_inference_steps or 28
        state.timesteps = self.set_timesteps(state.scheduler, steps, state.latents.shape[1])
        return state

    def denoise_step(self, input_batch: InputBatch, **kwargs) -> Tensor:
        states, first = input_batch.states, input_batch.states[0]
        texts = [
            None if embeds is None else (embeds, torch.cat([state.extra[name] for state in states]))
            for embeds, name in (
                (input_batch.prompt_embeds, "pooled"),
                (input_batch.negative_prompt_embeds, "negative_pooled"),
            )
        ]
        guidance = first.sampling.guidance_scale or 3.5
        positive, negative = self.branches(
            input_batch.latents, input_batch.timesteps, texts, first.extra["grid"], guidance
        )
        return self.predict_noise_maybe_with_cfg(
            do_true_cfg=input_batch.do_true_cfg,
            true_cfg_scale=first.sampling.true_cfg_scale or 1.0,
            positive_kwargs=positive,
            negative_kwargs=negative,
            cfg_normalize=False,
        )

    def step_scheduler(self, state: StepRequestState, noise_pred: Tensor, **kwargs) -> None:
        state.latents = self.scheduler_step_maybe_with_cfg(
            noise_pred, state.current_timestep, state.latents, state.do_true_cfg, per_request_scheduler=state.scheduler
        )
        state.step_index += 1

    def post_decode(self, state: StepRequestState, **kwargs) -> DiffusionOutput:
        return DiffusionOutput(output=self.decode(state.latents, state.extra["grid"]))
