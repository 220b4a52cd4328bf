"""A pipeline of videos with two experts and a boundary, written as the guide has it: whole, and in four methods."""

from __future__ import annotations

import copy
import html
import os
import re
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from omnimuse.compat.vllm.model_executor.models.utils import AutoWeightsLoader
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput, OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.utils import get_local_device
from omnimuse.compat.vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsStepExecution
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.diffusion.utils.tf_utils import get_transformer_config_kwargs
from omnimuse.compat.vllm_omni.diffusion.worker.input_batch import InputBatch
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState

from .experts_transformer import ExpertsTransformer3DModel

EXPERTS = ("transformer", "transformer_2")


def get_experts_post_process_func(od_config: OmniDiffusionConfig):
    video_processor = VideoProcessor(vae_scale_factor=8)

    def post_process_func(video: Tensor, output_type: str = "np"):
        return video_processor.postprocess_video(video, output_type=output_type)

    return post_process_func


class ExpertsPipeline(nn.Module, CFGParallelMixin):
    """A UMT5 encoder, and one transformer for the steps before the boundary and one for those after it."""

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        super().__init__()
        self.od_config = od_config
        self.device = get_local_device()
        model, given = od_config.model, {"local_files_only": os.path.exists(od_config.model)}
        self.scheduler = UniPCMultistepScheduler.from_pretrained(model, subfolder="scheduler", **given)
        encoder = UMT5EncoderModel.from_pretrained(model, subfolder="text_encoder", dtype=od_config.dtype, **given)
        self.text_encoder = encoder.to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **given)
        self.vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32, **given)
        self.vae.to(self.device)
        kwargs = get_transformer_config_kwargs(od_config.tf_model_config, ExpertsTransformer3DModel)
        for name in EXPERTS:
            setattr(self, name, ExpertsTransformer3DModel(od_config=od_config, **kwargs))
        self.boundary = od_config.boundary_ratio * self.scheduler.config.num_train_timesteps
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=model, subfolder=name, revision=None, prefix=f"{name}.", fall_back_to_pt=True
            )
            for name in EXPERTS
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights)

    def encode_prompt(self, prompt: str, length: int) -> Tensor:
        """[1, length, D], nothing after the text's end."""
        words = re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
        found = self.tokenizer([words], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        found = found.to(self.device)
        embeds = self.text_encoder(found.input_ids, found.attention_mask).last_hidden_state
        return embeds * found.attention_mask.unsqueeze(-1)

    def prepare_latents(self, sampling) -> Tensor:
        height, width, frames = sampling.height or 480, sampling.width or 832, sampling.num_frames
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        return randn_tensor(shape, generator=sampling.generator, device=self.device, dtype=torch.float32)

    def texts(self, prompt, sampling) -> list[Tensor | None]:
        words = {"prompt": prompt} if isinstance(prompt, str) else prompt
        scale, length = sampling.guidance_scale or 4.0, sampling.max_sequence_length or 512
        negative = self.encode_prompt(words.get("negative_prompt") or "", length) if scale > 1 else None
        return [self.encode_prompt(words["prompt"], length), negative]

    def predict_noise(self, expert: str, **kwargs) -> Tensor:
        return self.get_submodule(expert)(**kwargs)

    def predicted(self, latents: Tensor, t: Tensor, texts, sampling) -> Tensor:
        """By the expert of the time `t`, with its own scale."""
        first = bool(t >= self.boundary)
        scale = sampling.guidance_scale or 4.0
        expert, used = EXPERTS[not first], scale if first else sampling.guidance_scale_2 or scale
        positive, negative = (
            None
            if text is None
            else {
                "expert": expert,
                "hidden_states": latents,
                "timestep": t.expand(latents.shape[0]),
                "encoder_hidden_states": text,
            }
            for text in texts
        )
        return self.predict_noise_maybe_with_cfg(negative is not None, used, positive, negative, cfg_normalize=False)

    def decode(self, latents: Tensor) -> DiffusionOutput:
        config = self.vae.config
        mean, deviation = (
            torch.tensor(numbers, device=self.device).view(1, -1, 1, 1, 1)
            for numbers in (config.latents_mean, config.latents_std)
        )
        return DiffusionOutput(output=self.vae.decode(latents * deviation + mean, return_dict=False)[0])

    @torch.no_grad()
    def forward(self, req: OmniDiffusionRequest) -> DiffusionOutput:
        sampling = req.sampling_params
        texts, latents = self.texts(req.prompts[0], sampling), self.prepare_latents(sampling)
        self.scheduler.set_timesteps(sampling.num_inference_steps or 40, device=self.device)
        for t in self.scheduler.timesteps:
            noise_pred = self.predicted(latents, t, texts, sampling)
            latents = self.scheduler_step_maybe_with_cfg(noise_pred, t, latents, texts[1] is not None)
        return self.decode(latents)


class ExpertsStepPipeline(ExpertsPipeline, SupportsStepExecution):
    """The same in four methods; requests on both sides of the boundary may take a step together."""

    def prepare_encode(self, state: StepRequestState, **kwargs) -> StepRequestState:
        state.prompt_embeds, state.negative_prompt_embeds = self.texts(state.prompt, state.sampling)
        state.do_true_cfg = state.negative_prompt_embeds is not None
        state.latents = self.prepare_latents(state.sampling)
        state.scheduler = copy.deepcopy(self.scheduler)
        state.scheduler.set_timesteps(state.sampling.num_inference_steps or 40, device=self.device)
        state.timesteps = state.scheduler.timesteps
        return state

    def denoise_step(self, input_batch: InputBatch, **kwargs) -> Tensor:
        made = torch.empty_like(input_batch.latents)
        for row, (state, t) in enumerate(zip(input_batch.states, input_batch.timesteps, strict=True)):
            texts = [
                None if embeds is None else embeds[row : row + 1]
                for embeds in (input_batch.prompt_embeds, input_batch.negative_prompt_embeds)
            ]
            made[row] = self.predicted(input_batch.latents[row : row + 1], t, texts, state.sampling)[0]
        return made

    def step_scheduler(self, state: StepRequestState, noise_pred: Tensor, **kwargs) -> None:
        state.latents = self.scheduler_step_maybe_with_cfg(
            noise_pred, state.current_timestep, state.latents, state.do_true_cfg, per_request_scheduler=state.scheduler
        )
        state.step_index += 1

    def post_decode(self, state: StepRequestState, **kwargs) -> DiffusionOutput:
        return self.decode(state.latents)
