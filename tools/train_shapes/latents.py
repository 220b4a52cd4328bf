"""Encodes many scenes once, so that stage 2 never runs the autoencoder.

Each process keeps its own share in memory and on disk under the run folder (``latents_<rank>.safetensors``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from tools.train_shapes import store
from tools.train_shapes.data import SIZE, Renderer, Scene, Thing, draw_scene, held_out
from tools.train_shapes.network import to_patches
from tools.train_shapes.parallel import Rank
from tools.train_shapes.vae import VaePlan, build_vae

_BATCH = 64
DATA_VERSION = 3  # raise it when scenes change, so that cached latents are made anew


@dataclass
class LatentSet:
    """Scenes and their latents: ``patches`` bf16 [n, 64, 64] normalised, ``objects`` uint8 [n, 64] 0..255."""

    scenes: list[Scene]
    patches: Tensor
    objects: Tensor


@dataclass(frozen=True)
class Statistics:
    """Latents enter the transformer as (z - shift) * scale."""

    shift: float
    scale: float


def load_vae(run: Path, device: str) -> AutoencoderKL:
    """The trained autoencoder of stage 1 (moving average)."""
    vae = build_vae(VaePlan(run=str(run), device=device))
    vae.load_state_dict(store.load(run / "vae.safetensors")[0])
    return vae.eval().requires_grad_(False)


def scenes(seed: str, count: int, held_share: float) -> list[Scene]:
    """``count`` scenes of a generator seeded with ``seed``, none of a held-out combination."""
    rng = random.Random(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = draw_scene(rng)
        if not held_out(scene, held_share):
            found.append(scene)
    return found


@torch.no_grad()
def encode(vae: AutoencoderKL, batch: np.ndarray, device: str) -> Tensor:
    """uint8 [n, h, w, 3] to the mean latents, float [n, 16, h/8, w/8]."""
    x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.autocast(device, torch.bfloat16):
        return vae.encoder(x.contiguous(memory_format=torch.channels_last)).chunk(2, 1)[0].float()


def measure(vae: AutoencoderKL, device: str) -> Statistics:
    """Mean and deviation of the latents of 512 scenes, the same on every process."""
    renderer = Renderer()
    batch = np.stack([renderer.paint(scene) for scene in scenes("statistics", 512, 0.0)])
    z = torch.cat([encode(vae, part, device) for part in np.array_split(batch, 8)])
    return Statistics(round(z.mean().item(), 4), round(1 / z.std().item(), 4))


def object_share(picture_scenes: Sequence[Scene]) -> Tensor:
    """How much of each 16-pixel square the things' bounding squares cover, uint8 [n, 64]."""
    cover = torch.zeros(len(picture_scenes), 1, SIZE, SIZE)
    for row, scene in enumerate(picture_scenes):
        for thing in scene.things:
            cover[row, 0, _span(thing.y, thing), _span(thing.x, thing)] = 1
    return F.avg_pool2d(cover, 16).flatten(1).mul(255).byte()


def _span(centre: int, thing: Thing) -> slice:
    return slice(max(0, centre - thing.radius), centre + thing.radius + 1)


def load_or_encode(rank: Rank, run: Path, count: int, seed: int, held_share: float) -> tuple[LatentSet, Statistics]:
    """This process's ``count`` scenes, encoded now or read from the run folder."""
    vae = load_vae(run, rank.device)
    statistics = measure(vae, rank.device)
    key = {
        "data": DATA_VERSION,
        "count": count,
        "seed": seed,
        "held": held_share,
        "statistics": asdict(statistics),
    }
    path = run / f"latents_{rank.index}.safetensors"
    wanted = scenes(f"{seed} {rank.index}", count, held_share)
    if path.exists():
        tensors, saved = store.load(path)
        if saved == key:
            return LatentSet(wanted, tensors["patches"], tensors["objects"]), statistics
    renderer, patches, objects = Renderer(), [], []
    for start in range(0, count, _BATCH):
        part = wanted[start : start + _BATCH]
        z = encode(vae, np.stack([renderer.paint(scene) for scene in part]), rank.device)
        patches.append(to_patches((z - statistics.shift) * statistics.scale).bfloat16().cpu())
        objects.append(object_share(part))
        if rank.first and start % (_BATCH * 100) == 0:
            print(f"encoded {start} of {count}", flush=True)
    found = LatentSet(wanted, torch.cat(patches), torch.cat(objects))
    store.save(path, {"patches": found.patches, "objects": found.objects}, key)
    return found, statistics
