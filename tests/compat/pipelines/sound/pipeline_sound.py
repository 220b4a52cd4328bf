"""A pipeline of sound, written as the guide has it: its networks are read in `__init__`, and none is left to load."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable

import torch
from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel

from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput, OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.utils import get_local_device
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsStepExecution
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState


def get_sound_post_process_func(od_config: OmniDiffusionConfig):
    def post_process_func(audio: Tensor):
        return audio.float().cpu().numpy()

    return post_process_func


class SoundPipeline(nn.Module, CFGParallelMixin):
    """A T5 encoder, a projection, and a transformer over latents of sound, guided by two predictions."""

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        super().__init__()
        self.device = get_local_device()
        model, given = od_config.model, {"local_files_only": os.path.exists(od_config.model)}
        dtype = od_config.dtype
        parts = {"transformer": StableAudioDiTModel, "vae": AutoencoderOobleck}
        parts["projection_model"] = StableAudioProjectionModel
        for name, kind in parts.items():
            setattr(self, name, kind.from_pretrained(model, subfolder=name, torch_dtype=dtype, **given).to(self.device))
        self.text_encoder = T5EncoderModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, **given)
        self.text_encoder.to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **given)
        self.scheduler = CosineDPMSolverMultistepScheduler.from_pretrained(model, subfolder="scheduler", **given)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass

    def encode_prompt(self, texts: list[str]) -> Tensor:
        """[B, S, D]; pads are nothing."""
        found = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        keep = found.attention_mask.unsqueeze(-1)
        embeds = torch.stack(
            [
                self.text_encoder(ids[None], attention_mask=mask[None])[0][0]
                for ids, mask in zip(found.input_ids, found.attention_mask, strict=True)
            ]
        )
        negative = torch.where(keep.bool(), embeds, 0.0)
        embeds = torch.cat([negative[:-1], embeds[-1:]])
        return self.projection_model(text_hidden_states=embeds).text_hidden_states * keep

    def length(self, sampling) -> float | None:
        """How long it is to be, as the guide has it."""
        return sampling.audio_end_in_s

    def prepare(self, prompt, sampling) -> dict:
        """All that the loop needs."""
        words = {"prompt": prompt} if isinstance(prompt, str) else prompt
        negative, guided = words.get("negative_prompt"), (sampling.guidance_scale or 7.0) > 1
        texts = [negative, words["prompt"]] if guided and negative is not None else [words["prompt"]]
        start = float(sampling.extra_args.get("audio_start_in_s", 0.0))
        rate = self.vae.config.sampling_rate
        longest = self.transformer.config.sample_size * self.vae.hop_length / rate
        end = start + (self.length(sampling) or longest)
        times = self.projection_model(
            start_seconds=torch.tensor([start] * len(texts), device=self.device),
            end_seconds=torch.tensor([end] * len(texts), device=self.device),
        )
        ends = [times.seconds_start_hidden_states, times.seconds_end_hidden_states]
        embeds, lengths = torch.cat([self.encode_prompt(texts), *ends], dim=1), torch.cat(ends, dim=2)
        if guided and len(texts) == 1:
            embeds, lengths = torch.cat([torch.zeros_like(embeds), embeds]), torch.cat([lengths, lengths])
        size = self.transformer.config.sample_size
        shape = (1, self.transformer.config.in_channels, size)
        noise = randn_tensor(shape, generator=sampling.generator, device=self.device, dtype=embeds.dtype)
        turns = get_1d_rotary_pos_embed(
            self.transformer.config.attention_head_dim // 2,
            size + lengths.shape[1],
            use_real=True,
            repeat_interleave_real=False,
        )
        span = (int(start * rate), int(end * rate))
        return {"embeds": embeds, "lengths": lengths, "noise": noise, "turns": turns, "guided": guided, "span": span}

    def predict(self, scheduler, latents: Tensor, t: Tensor, found: dict, scale: float) -> Tensor:
        shared = {
            "hidden_states": scheduler.scale_model_input(latents, t),
            "timestep": t.unsqueeze(0),
            "rotary_embedding": found["turns"],
            "return_dict": False,
        }
        branches = [
            {**shared, "encoder_hidden_states": embeds, "global_hidden_states": lengths}
            for embeds, lengths in zip(found["embeds"].split(1), found["lengths"].split(1), strict=True)
        ]
        return self.predict_noise_maybe_with_cfg(
            do_true_cfg=found["guided"],
            true_cfg_scale=scale,
            positive_kwargs=branches[-1],
            negative_kwargs=branches[0] if found["guided"] else None,
            cfg_normalize=False,
        )

    def decode(self, latents: Tensor, span: tuple[int, int]) -> DiffusionOutput:
        return DiffusionOutput(output=self.vae.decode(latents).sample[:, :, slice(*span)])

    @torch.no_grad()
    def forward(self, req: OmniDiffusionRequest) -> DiffusionOutput:
        sampling = req.sampling_params
        found = self.prepare(req.prompts[0], sampling)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sampling.num_inference_steps or 100, device=self.device)
        latents = found["noise"] * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise_pred = self.predict(scheduler, latents, t, found, sampling.guidance_scale or 7.0)
            latents = scheduler.step(noise_pred, t, latents, generator=sampling.generator).prev_sample
        return self.decode(latents, found["span"])


class SoundStepPipeline(SoundPipeline, SupportsStepExecution):
    """The same in four methods, one request at a time as an older guide has it: `denoise_step(state)`."""

    def length(self, sampling) -> float | None:
        """The same, as published model files have it: among the pipeline's own choices."""
        return sampling.extra_args.get("audio_end_in_s")

    def prepare_encode(self, state: StepRequestState, **kwargs) -> StepRequestState:
        state.extra["found"] = found = self.prepare(state.prompt, state.sampling)
        state.scheduler = copy.deepcopy(self.scheduler)
        state.scheduler.set_timesteps(state.sampling.num_inference_steps or 100, device=self.device)
        state.timesteps = state.scheduler.timesteps
        state.latents = found["noise"] * state.scheduler.init_noise_sigma
        return state

    def denoise_step(self, state: StepRequestState, **kwargs) -> Tensor:
        scale = state.sampling.guidance_scale or 7.0
        return self.predict(state.scheduler, state.latents, state.current_timestep, state.extra["found"], scale)

    def step_scheduler(self, state: StepRequestState, noise_pred: Tensor, **kwargs) -> None:
        moved = state.scheduler.step(
            noise_pred, state.current_timestep, state.latents, generator=state.sampling.generator
        )
        state.latents = moved.prev_sample
        state.step_index += 1

    def post_decode(self, state: StepRequestState, **kwargs) -> DiffusionOutput:
        return self.decode(state.latents, state.extra["found"]["span"])
