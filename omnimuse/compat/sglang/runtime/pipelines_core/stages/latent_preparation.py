"""`sglang.multimodal_gen.runtime.pipelines_core.stages.latent_preparation`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.distributed import get_local_torch_device
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs


class LatentPreparationStage(PipelineStage):
    """The noise to begin with, of the output's own generator, in the format of the prompt's embeds."""

    def __init__(self, scheduler: Any, transformer: Any = None) -> None:
        super().__init__()
        self.scheduler, self.transformer = scheduler, transformer

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        config, device = server_args.pipeline_config, get_local_torch_device()
        frames = self.adjust_video_length(batch, server_args)
        latents = batch.latents
        if latents is None:
            shape = config.prepare_latent_shape(batch, batch.batch_size, frames)
            noise = randn_tensor(shape, generator=batch.generator, device=device, dtype=self._dtype(batch))
            latents = config.maybe_pack_latents(noise, batch.batch_size, batch)
        latents = latents.to(device)
        if hasattr(self.scheduler, "init_noise_sigma"):
            latents = latents * self.scheduler.init_noise_sigma
        batch.latents, batch.raw_latent_shape = latents, latents.shape
        return batch

    def adjust_video_length(self, batch: Req, server_args: ServerArgs) -> int:
        """Frames of latents for so many frames of a video."""
        config = server_args.pipeline_config.vae_config
        ratio = config.arch_config.temporal_compression_ratio
        return (batch.num_frames - 1) // ratio + 1 if config.use_temporal_scaling_frames else batch.num_frames

    def _dtype(self, batch: Req) -> torch.dtype:
        embeds = batch.prompt_embeds[0] if isinstance(batch.prompt_embeds, list) else batch.prompt_embeds
        found: torch.dtype = embeds.dtype
        return found

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        for name, value in (("height", batch.height), ("width", batch.width), ("num_frames", batch.num_frames)):
            found.add_check(name, value, StageValidators.positive_int)
        found.add_check("generator", batch.generator, StageValidators.generator_or_list_generators)
        return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
