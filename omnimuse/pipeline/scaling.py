"""Between the latents of an autoencoder and those, of mean 0 and deviation 1, that a network denoises.

The autoencoder's configuration says how: a factor and a shift, a mean and a deviation per channel, which it may also
keep beside its weights, or statistics that it gathered while it was trained, over patches of latents. Used by the
stages that encode and decode.

Letters: C channels; h w latent height, width; * any further dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.core.errors import ModelError

PATCH = 2  # latents a side of a patch whose statistics an autoencoder keeps


def scaled(vae: nn.Module, config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """Latents [C, *] of `vae` -> those that a network denoises: [C, *], or patches [4C, h/2, w/2] with statistics."""
    if "batch_norm_eps" in config:
        mean, deviation = _statistics(vae, config, latents)
        return (patched(latents) - mean) / deviation
    if config.get("latents_mean") is not None:
        mean, deviation = _per_channel(config, latents)
        return (latents - mean) * (1.0 / deviation)  # the reference's way; a quotient would round otherwise
    factor, shift = _factor(config)
    if (kept := _kept(vae, latents)) is not None:
        return (latents - kept[0]) * factor / kept[1]
    return (latents - shift) * factor


def unscaled(vae: nn.Module, config: Mapping[str, Any], latents: Tensor) -> Tensor:
    """The reverse of `scaled`, in the dtype of `vae`, which decodes them."""
    latents = latents.to(next(vae.parameters()).dtype)
    if "batch_norm_eps" in config:
        mean, deviation = _statistics(vae, config, latents)
        return unpatched(latents * deviation + mean)
    if config.get("latents_mean") is not None:
        mean, deviation = _per_channel(config, latents)
        return latents / (1.0 / deviation) + mean
    factor, shift = _factor(config)
    if (kept := _kept(vae, latents)) is not None:
        return latents * kept[1] / factor + kept[0]
    return latents / factor + shift


def patched(latents: Tensor) -> Tensor:
    """[C, h, w] -> [4C, h/2, w/2]; the order within a patch is channel, row, column."""
    c, h, w = latents.shape
    return latents.reshape(c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3).reshape(-1, h // 2, w // 2)


def unpatched(patches: Tensor) -> Tensor:
    """The reverse of `patched`."""
    c, h, w = patches.shape
    return patches.reshape(-1, PATCH, PATCH, h, w).permute(0, 3, 1, 4, 2).reshape(c // 4, h * PATCH, w * PATCH)


def _factor(config: Mapping[str, Any]) -> tuple[float, float]:
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    if not isinstance(factor, float | int):
        raise ModelError(
            f"the autoencoder's config.json has scaling_factor={factor!r} and no latents_mean, so nothing says how its "
            "latents are scaled; use the config.json that was published with it"
        )
    return float(factor), float(shift or 0.0)


def _per_channel(config: Mapping[str, Any], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel, made to broadcast, in the dtype of `latents`."""
    mean, deviation = (
        torch.tensor(config[name]).to(latents.device, latents.dtype).view(-1, *[1] * (latents.ndim - 1))  # [C, 1, ...]
        for name in ("latents_mean", "latents_std")
    )
    return mean, deviation


def _kept(vae: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of every channel, where the autoencoder itself keeps them, made to broadcast."""
    buffers = dict(vae.named_buffers(recurse=False))
    if "latents_mean" not in buffers:
        return None
    shape = (-1, *[1] * (latents.ndim - 1))
    return buffers["latents_mean"].to(latents).view(shape), buffers["latents_std"].to(latents).view(shape)


def _statistics(vae: nn.Module, config: Mapping[str, Any], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel of a patch: [4C, 1, 1] each."""
    norm = vae.get_submodule("bn")
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")  # [4C]
    deviation = torch.sqrt(variance + config["batch_norm_eps"])
    return mean.view(-1, 1, 1).to(latents), deviation.view(-1, 1, 1).to(latents)
