"""A pipeline from text to pictures with guidance, in the shape of the guide: `forward(req)` alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from omnimuse.compat.vllm.model_executor.models.utils import AutoWeightsLoader
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput, OmniDiffusionConfig, TransformerConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl import DistributedAutoencoderKL
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.utils import get_local_device
from omnimuse.compat.vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportImageInput, SupportsStepExecution
from omnimuse.compat.vllm_omni.diffusion.offloader import OffloadPlan
from omnimuse.compat.vllm_omni.diffusion.profiler import DiffusionPipelineProfilerMixin
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.diffusion.utils.tf_utils import get_transformer_config_kwargs
from omnimuse.compat.vllm_omni.diffusion.worker.input_batch import InputBatch
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState
from omnimuse.compat.vllm_omni.errors import OmniClientError

from .medium_transformer import MediumTransformer2DModel


def get_medium_post_process_func(od_config: OmniDiffusionConfig):
    with open(os.path.join(od_config.model, "vae/config.json")) as file:
        scale = 2 ** (len(json.load(file)["block_out_channels"]) - 1)
    image_processor = VaeImageProcessor(vae_scale_factor=scale)

    def post_process_func(images: Tensor, output_type: str = "pil"):
        return image_processor.postprocess(images, output_type=output_type)

    return post_process_func


class MediumPipeline(nn.Module, CFGParallelMixin, DiffusionPipelineProfilerMixin):
    """Two CLIP encoders, one transformer of two streams."""

    transformer_class = MediumTransformer2DModel

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        super().__init__()
        self.od_config = od_config
        self.parallel_config = od_config.parallel_config
        self.device = get_local_device()
        model = od_config.model
        local = os.path.exists(model)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            model, subfolder="scheduler", local_files_only=local
        )
        for suffix in ("", "_2"):
            encoder = CLIPTextModelWithProjection.from_pretrained(
                model, subfolder=f"text_encoder{suffix}", local_files_only=local, torch_dtype=od_config.dtype
            )
            setattr(self, f"text_encoder{suffix}", encoder.to(self.device))
            tokenizer = CLIPTokenizer.from_pretrained(model, subfolder=f"tokenizer{suffix}", local_files_only=local)
            setattr(self, f"tokenizer{suffix}", tokenizer)
        self.vae = DistributedAutoencoderKL.from_pretrained(
            model, subfolder="vae", local_files_only=local, torch_dtype=od_config.dtype
        ).to(self.device)
        kwargs = get_transformer_config_kwargs(od_config.tf_model_config, MediumTransformer2DModel)
        self.transformer = self.transformer_class(od_config=od_config, **kwargs)
        self.joint_attention_dim = od_config.tf_model_config.joint_attention_dim
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.default_sample_size = 128
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=od_config.model,
                subfolder="transformer",
                revision=None,
                prefix="transformer.",
                fall_back_to_pt=True,
            )
        ]
        self.setup_diffusion_pipeline_profiler(
            enable_diffusion_pipeline_profiler=od_config.enable_diffusion_pipeline_profiler
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights)

    def encode_prompt(self, prompt: list[str], max_sequence_length: int) -> tuple[Tensor, Tensor]:
        """Embeds [B, S, D] and pooled ones [B, P]; the place of a third encoder stays empty."""
        hidden, pooled = [], []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            ids = tokenizer(
                prompt,
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            found = encoder(ids.to(self.device), output_hidden_states=True)
            hidden.append(found.hidden_states[-2])
            pooled.append(found[0])
        embeds = torch.cat(hidden, dim=-1)
        embeds = nn.functional.pad(embeds, (0, self.joint_attention_dim - embeds.shape[-1]))
        empty = embeds.new_zeros(len(prompt), max_sequence_length, self.joint_attention_dim)
        return torch.cat([embeds, empty], dim=1), torch.cat(pooled, dim=-1)

    def prepare_latents(self, height: int, width: int, count: int, generator: torch.Generator | None) -> Tensor:
        shape = (count, 16, height // self.vae_scale_factor, width // self.vae_scale_factor)
        return randn_tensor(shape, generator=generator, device=self.device, dtype=self.od_config.dtype)

    def diffuse(
        self, latents: Tensor, positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor] | None, scale: float
    ) -> Tensor:
        for t in self.scheduler.timesteps:
            timestep = t.expand(latents.shape[0])
            branches = [
                None
                if each is None
                else {
                    "hidden_states": latents,
                    "timestep": timestep,
                    "encoder_hidden_states": each[0],
                    "pooled_projections": each[1],
                }
                for each in (positive, negative)
            ]
            noise_pred = self.predict_noise_maybe_with_cfg(
                do_true_cfg=negative is not None,
                true_cfg_scale=scale,
                positive_kwargs=branches[0],
                negative_kwargs=branches[1],
                cfg_normalize=False,
            )
            latents = self.scheduler_step_maybe_with_cfg(noise_pred, t, latents, negative is not None)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]

    @torch.no_grad()
    def forward(self, req: OmniDiffusionRequest) -> DiffusionOutput:
        prompt = [p if isinstance(p, str) else (p.get("prompt") or "") for p in req.prompts]
        negative_prompt = ["" if isinstance(p, str) else (p.get("negative_prompt") or "") for p in req.prompts]
        sampling_params = req.sampling_params
        num_inference_steps = sampling_params.num_inference_steps or 28
        guidance_scale = sampling_params.guidance_scale or 7.0
        height = sampling_params.height or (self.default_sample_size * self.vae_scale_factor)
        width = sampling_params.width or (self.default_sample_size * self.vae_scale_factor)
        max_sequence_length = sampling_params.max_sequence_length or 256

        positive = self.encode_prompt(prompt, max_sequence_length)
        negative = self.encode_prompt(negative_prompt, max_sequence_length) if guidance_scale > 1 else None
        latents = self.prepare_latents(height, width, len(prompt), sampling_params.generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = self.diffuse(latents, positive, negative, guidance_scale)
        return DiffusionOutput(output=self.decode(latents), stage_durations=self.stage_durations)


class MediumStepPipeline(MediumPipeline, SupportsStepExecution):
    """The same in four methods, so that the engine owns the loop."""

    def prepare_encode(self, state: StepRequestState, **kwargs) -> StepRequestState:
        sampling, prompt = state.sampling, state.prompt
        scale = sampling.guidance_scale or 7.0
        length = sampling.max_sequence_length or 256
        size = self.default_sample_size * self.vae_scale_factor
        state.prompt_embeds, state.extra["pooled"] = self.encode_prompt([prompt["prompt"]], length)
        state.do_true_cfg = scale > 1
        if state.do_true_cfg:
            text = prompt.get("negative_prompt") or ""
            state.negative_prompt_embeds, state.extra["negative_pooled"] = self.encode_prompt([text], length)
        state.latents = self.prepare_latents(sampling.height or size, sampling.width or size, 1, sampling.generator)
        state.scheduler = copy.deepcopy(self.scheduler)
        state.scheduler.set_timesteps(sampling.num_inference_steps or 28, device=self.device)
        state.timesteps = state.scheduler.timesteps
        return state

    def denoise_step(self, input_batch: InputBatch, **kwargs) -> Tensor:
        shared = {"hidden_states": input_batch.latents, "timestep": input_batch.timesteps}
        texts = [(input_batch.prompt_embeds, "pooled"), (input_batch.negative_prompt_embeds, "negative_pooled")]
        branches = [
            None
            if embeds is None
            else {
                **shared,
                "encoder_hidden_states": embeds,
                "pooled_projections": torch.cat([state.extra[name] for state in input_batch.states]),
            }
            for embeds, name in texts
        ]
        return self.predict_noise_maybe_with_cfg(
            do_true_cfg=input_batch.do_true_cfg,
            true_cfg_scale=input_batch.states[0].sampling.guidance_scale or 7.0,
            positive_kwargs=branches[0],
            negative_kwargs=branches[1],
            cfg_normalize=False,
        )

    def step_scheduler(self, state: StepRequestState, noise_pred: Tensor, **kwargs) -> None:
        state.latents = self.scheduler_step_maybe_with_cfg(
            noise_pred,
            state.current_timestep,
            state.latents,
            state.do_true_cfg,
            per_request_scheduler=state.scheduler,
        )
        state.step_index += 1

    def post_decode(self, state: StepRequestState, **kwargs) -> DiffusionOutput:
        return DiffusionOutput(output=self.decode(state.latents))


def get_medium_edit_pre_process_func(od_config: OmniDiffusionConfig):
    image_processor = VaeImageProcessor(vae_scale_factor=8)

    def pre_process_func(request: OmniDiffusionRequest):
        sampling = request.sampling_params
        for prompt in request.prompts:
            multi_modal_data = prompt.get("multi_modal_data", {}) if not isinstance(prompt, str) else None
            raw_image = multi_modal_data.get("image", None) if multi_modal_data is not None else None
            if raw_image is None:
                raise OmniClientError("this pipeline edits a picture, and none was given")
            pixels = image_processor.preprocess(raw_image, height=sampling.height, width=sampling.width)
            prompt["additional_information"] = {"pixels": pixels}
        return request

    return pre_process_func


class MediumEditPipeline(MediumPipeline, SupportImageInput):
    """The same from a picture, of which `strength` says how much is drawn anew."""

    def prepare_latents(self, height: int, width: int, count: int, generator: torch.Generator | None) -> Tensor:
        clean = self.vae.encode(self.pixels.to(self.device, self.od_config.dtype)).latent_dist.sample(generator)
        clean = (clean - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return clean, super().prepare_latents(height, width, count, generator)

    def diffuse(self, latents, positive, negative, scale):
        steps = len(self.scheduler.timesteps)
        first = int(max(steps - min(steps * self.strength, steps), 0))
        timesteps = self.scheduler.timesteps[first:]
        self.scheduler.set_begin_index(first)
        clean, noise = latents
        noised = self.scheduler.scale_noise(clean, timesteps[:1], noise)
        self.scheduler.timesteps = timesteps
        return super().diffuse(noised, positive, negative, scale)

    @torch.no_grad()
    def forward(self, req: OmniDiffusionRequest) -> DiffusionOutput:
        self.pixels = req.prompts[0]["additional_information"]["pixels"]
        self.strength = req.sampling_params.strength or 0.6
        return super().forward(req)


class MediumEditStepPipeline(MediumStepPipeline, SupportImageInput):
    """The same in four methods: a state begins with the noised picture, at a later step."""

    def prepare_encode(self, state: StepRequestState, **kwargs) -> StepRequestState:
        pixels = state.prompt["additional_information"]["pixels"].to(self.device, self.od_config.dtype)
        clean = self.vae.encode(pixels).latent_dist.sample(state.sampling.generator)
        clean = (clean - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        state = super().prepare_encode(state, **kwargs)
        steps = len(state.timesteps)
        first = int(max(steps - min(steps * (state.sampling.strength or 0.6), steps), 0))
        state.scheduler.set_begin_index(first)
        state.timesteps = state.timesteps[first:]
        state.latents = state.scheduler.scale_noise(clean, state.timesteps[:1], state.latents)
        return state


class CustomMediumPipeline(MediumPipeline):
    """A checkpoint of its own kind: weights at the root under other names, and the network's widths in the index."""

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        network = TransformerConfig(od_config.model_config["network"])
        super().__init__(od_config=dataclasses.replace(od_config, tf_model_config=network), prefix=prefix)
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=od_config.model, subfolder=None, prefix="", fall_back_to_pt=False
            )
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        renamed = ((name.replace("net.", "", 1), tensor) for name, tensor in weights)
        return {f"transformer.{name}" for name in self.transformer.load_weights(renamed)}


class CustomMediumStepPipeline(MediumStepPipeline, CustomMediumPipeline):
    """The same in four methods."""


class EagerMediumPipeline(CustomMediumPipeline):
    """The same, with its weights loaded while it is made, in its own way."""

    def __init__(self, *, od_config: OmniDiffusionConfig, prefix: str = "") -> None:
        super().__init__(od_config=od_config, prefix=prefix)
        self.weights_sources = []
        CustomMediumPipeline.load_weights(self, load_file(os.path.join(od_config.model, "model.safetensors")).items())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass


class BareTransformer(MediumTransformer2DModel):
    """One that does not say what its blocks are."""

    _repeated_blocks = []
    _layerwise_offload_blocks_attrs = []


class BareMediumPipeline(MediumPipeline):
    """The same around such a transformer."""

    transformer_class = BareTransformer


class PlannedMediumPipeline(MediumPipeline):
    """The same, with a plan of what else may wait outside the device."""

    _offload_plan = OffloadPlan(
        encoder_block_attrs={"text_encoder": ("text_model.encoder.layers",), "text_encoder_3": ("encoder.block",)},
        on_demand_component_paths=frozenset({"text_encoder", "text_encoder_2"}),
    )
