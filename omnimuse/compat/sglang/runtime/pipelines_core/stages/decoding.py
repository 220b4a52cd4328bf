"""`sglang.multimodal_gen.runtime.pipelines_core.stages.decoding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.distributed import get_local_torch_device
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import OutputBatch, Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.server_args import ServerArgs


class DecodingStage(PipelineStage):
    """Finished latents as pixels in [0, 1]."""

    def __init__(self, vae: Any, pipeline: Any = None) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: Req, server_args: ServerArgs) -> OutputBatch:
        shown = None
        if batch.return_trajectory_decoded and batch.trajectory_latents is not None:
            shown = [self.decode(each, server_args) for each in batch.trajectory_latents.unbind(1)]
        return OutputBatch(
            output=self.decode(batch.latents, server_args),
            trajectory_timesteps=batch.trajectory_timesteps,
            trajectory_latents=batch.trajectory_latents,
            trajectory_decoded=shown,
        )

    def scale_and_shift(self, vae_arch_config: Any, latents: Tensor, server_args: ServerArgs) -> Tensor:
        """Latents [B, C, ...] as the autoencoder made them: by its means and deviations if it has them, or a factor."""
        if (spread := spread_of(vae_arch_config, latents)) is not None:
            return latents * spread[1] + spread[0]
        latents = latents / vae_arch_config.scaling_factor
        shift = vae_arch_config.shift_factor
        return latents if shift is None else latents + shift

    @torch.no_grad()
    def decode(self, latents: Any, server_args: ServerArgs) -> Tensor:
        """Latents [B, C, ...] as pixels in [0, 1], float32."""
        latents = latents.to(get_local_torch_device())
        if server_args.pipeline_config.vae_tiling and hasattr(self.vae, "enable_tiling"):
            self.vae.enable_tiling()
        plain = self.scale_and_shift(server_args.pipeline_config.vae_config.arch_config, latents, server_args)
        made = self.vae.decode(plain.to(next(self.vae.parameters()).dtype))
        pixels: Tensor = made if isinstance(made, Tensor) else made.sample
        return (pixels / 2 + 0.5).clamp(0, 1).float()


def spread_of(arch: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Means and deviations of latents [B, C, ...] by channel, where an autoencoder says them."""
    if not hasattr(arch, "latents_std") or not arch.latents_std:
        return None
    shape = [1, -1, *[1] * (latents.ndim - 2)]
    mean, std = (torch.as_tensor(values).to(latents).view(shape) for values in (arch.latents_mean, arch.latents_std))
    return mean, std


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
