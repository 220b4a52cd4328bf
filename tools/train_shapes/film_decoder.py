"""Stage 3 of the model of films: its decoder learns on, while latents mean what the transformer has learnt.

python -m tools.train_shapes.film_decoder --run runs/film --minutes 8
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tools.train_shapes.film_vae import FILMS, PLAN, encode, load_vae
from tools.train_shapes.vae import VaePlan, main


def build(plan: VaePlan) -> AutoencoderKLWan:
    """The trained autoencoder, of which the decoder goes on learning."""
    vae = load_vae(Path(plan.run), plan.device)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    return vae


@torch.no_grad()
def known(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """As ``encode``, of which nobody learns."""
    return encode(vae, x)


DECODER = replace(FILMS, build=build, encode=known)

if __name__ == "__main__":
    main(DECODER, replace(PLAN, minutes=8.0, peak=1.5e-3, crop_share=0.0))
