"""Stage 1 of the model of films: trains its autoencoder (diffusers AutoencoderKLWan, factor 8, 4 frames, 16 channels).

    python -m tools.train_shapes.film_vae --run runs/film --minutes 15          # --resume continues

The layout is that of Wan 2.2's autoencoder: 2 x 2 pixels become channels before the first convolution, and averages go
past the blocks. The loop is that of ``vae.py``: first crops of a few frames, then whole films.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from tools.train_shapes import store
from tools.train_shapes.data import Renderer
from tools.train_shapes.film import FRAMES, SIDE, draw_film, frames
from tools.train_shapes.vae import Lesson, VaePlan, main

CHANNELS = 16
CONFIG = {
    "base_dim": 16,
    "z_dim": CHANNELS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
_SHORT = 5  # frames of a crop
PLAN = VaePlan("runs/film", 15.0, crop_share=0.8, crop_batch=8, whole_batch=2, processes=1)


def to_pixels(batch: np.ndarray) -> Tensor:
    """uint8 [n, T, h, w, 3] to float [n, 3, T, h, w] in -1..1."""
    return torch.from_numpy(batch).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1).contiguous()


def from_pixels(x: Tensor) -> np.ndarray:
    """The inverse of ``to_pixels``; what is beyond -1..1 is cut off."""
    return x.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def films(rng: random.Random, renderer: Renderer, count: int, side: int) -> Tensor:
    """``count`` fresh films, or crops of ``side`` and a few frames around the thing; float [n, 3, T, side, side]."""
    length = FRAMES if side == SIDE else _SHORT
    batch = np.empty((count, length, side, side, 3), np.uint8)
    for row in range(count):
        film, first = draw_film(rng), rng.randrange(FRAMES - length + 1)
        thing = film.scenes[first + length // 2].things[0]
        reach = thing.radius // 2
        top, left = (
            min(max(at // 2 + rng.randint(-reach, reach) - side // 2, 0), SIDE - side) for at in (thing.y, thing.x)
        )
        batch[row] = frames(film, renderer, first, length)[:, top : top + side, left : left + side]
    return to_pixels(batch)


def build(plan: VaePlan) -> AutoencoderKLWan:
    """The network, with little noise in its latents at first."""
    torch.manual_seed(plan.seed)
    vae = AutoencoderKLWan(**CONFIG, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    vae.quant_conv.bias.data[CHANNELS:] = -6.0
    return vae.to(plan.device)


def encode(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents of films [n, 3, T, h, w]: [n, 16, (T + 3) / 4, h/8, w/8] each."""
    vae.clear_cache()
    x = patchify(x, CONFIG["patch_size"])
    chunks = [x[:, :, :1], *x[:, :, 1:].split(4, 2)]
    parts = [vae.encoder(part, feat_cache=vae._enc_feat_map, feat_idx=[0]) for part in chunks]
    vae.clear_cache()
    mean, log_variance = vae.quant_conv(torch.cat(parts, 2)).chunk(2, 1)
    return mean, log_variance


def decode(vae: Any, z: Tensor) -> Tensor:
    """Latents to films, as ``AutoencoderKLWan.decode`` but for what it cuts off beyond -1..1, which would not learn."""
    vae.clear_cache()
    parts = [
        vae.decoder(part, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=not number)
        for number, part in enumerate(vae.post_quant_conv(z).split(1, 2))
    ]
    vae.clear_cache()
    return unpatchify(torch.cat(parts, 2), CONFIG["patch_size"])


FILMS = Lesson(build, films, encode, decode, crop=32, whole=SIDE, looked_at=8)


def load_vae(run: Path, device: str) -> AutoencoderKLWan:
    """The trained autoencoder (moving average)."""
    vae = build(VaePlan(run=str(run), device=device))
    vae.load_state_dict(store.load(run / "vae.safetensors")[0])
    return vae.eval().requires_grad_(False)


if __name__ == "__main__":
    main(FILMS, PLAN)
