"""Stage 1: trains the autoencoder (diffusers AutoencoderKL, factor 8, 16 latent channels).

First on 64x64 crops around edges, then on whole pictures.  Writes ``vae.safetensors`` (moving average, latent
statistics) and ``vae_checkpoint.safetensors`` (resume) under the run folder.  Gate before stage 2: ``grade.py``.

What is learnt, and by which pictures, is a ``Lesson``; ``film_vae.py`` has that of the autoencoder of films.

Letters: n pictures, c channels, h w pixels in -1..1; of films T frames, [n, c, T, h, w].
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from tools.train_shapes import store
from tools.train_shapes.data import SIZE, Renderer, draw_scene
from tools.train_shapes.fastnorm import build, fuse_norms
from tools.train_shapes.flat import FlatTrainer, Optimizer, cosine
from tools.train_shapes.parallel import Clock, Rank, launch

CONFIG = {
    "block_out_channels": (16, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": SIZE,
}


@dataclass(frozen=True)
class VaePlan:
    """The knobs of stage 1; batches are per process."""

    run: str = "runs/shapes"
    minutes: float = 27.0
    peak: float = 2e-3
    crop_share: float = 0.6
    crop_batch: int = 16
    whole_batch: int = 5
    kl: float = 5e-4
    edge: float = 4.0
    seed: int = 1
    processes: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class Lesson:
    """An autoencoder and what it is shown: ``show`` gives so many fresh pictures or films, whole or crops of a side;
    ``encode`` gives mean and log variance of the latents, ``decode`` pixels.
    """

    build: Callable[[VaePlan], nn.Module]
    show: Callable[[random.Random, Renderer, int, int], Tensor]
    encode: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Any, Tensor], Tensor]
    crop: int
    whole: int
    looked_at: int = 16


def pictures(rng: random.Random, renderer: Renderer, count: int, side: int) -> Tensor:
    """``count`` fresh pictures, or crops of ``side`` near an edge; float [n, 3, side, side] in -1..1."""
    batch = np.empty((count, side, side, 3), np.uint8)
    for row in range(count):
        scene = draw_scene(rng)
        picture = renderer.paint(scene)
        thing = rng.choice(scene.things)
        reach = int(thing.radius)
        top = min(max(thing.y + rng.randint(-reach, reach) - side // 2, 0), SIZE - side)
        left = min(max(thing.x + rng.randint(-reach, reach) - side // 2, 0), SIZE - side)
        batch[row] = picture[top : top + side, left : left + side]
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(127.5).sub(1)  # channels last


def edge_weights(x: Tensor, extra: float) -> Tensor:
    """1 on flat areas, up to 1 + extra within two pixels of an edge; [n, 1, h, w]."""
    spread = F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1)
    return 1 + extra * F.max_pool2d(spread.amax(1, keepdim=True), 3, 1, 1).clamp(0, 1)


def as_pictures(x: Tensor) -> Tensor:
    """Pictures as they are; frames of films as pictures: [n * T, c, h, w]."""
    return x.transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x


def vae_loss(lesson: Lesson, vae: nn.Module, x: Tensor, plan: VaePlan) -> tuple[Tensor, Tensor]:
    """(loss, mean square error) of reconstructing ``x`` through a sampled latent."""
    with torch.autocast(x.device.type, torch.bfloat16):
        mean, log_variance = (part.float() for part in lesson.encode(vae, x))  # [n, 16, h/8, w/8] each
        log_variance = log_variance.clamp(-12, 6)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        y = lesson.decode(vae, z)
    x = as_pictures(x)
    difference = as_pictures(y).float() - x
    square = difference * difference
    reconstruction = ((difference.abs() + 2 * square) * edge_weights(x, plan.edge)).mean()
    kl = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction + plan.kl * kl, square.mean().detach()


@torch.no_grad()
def reconstruct(lesson: Lesson, vae: nn.Module, x: Tensor) -> Tensor:
    """x [n, 3, h, w] or [n, 3, T, h, w] through the mean latent and back, float."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return lesson.decode(vae, lesson.encode(vae, x)[0]).float()


def psnr(x: Tensor, y: Tensor) -> float:
    """Decibels between two batches in -1..1, averaged over pictures or films."""
    error = (x - y.clamp(-1, 1)).square().flatten(1).mean(1).clamp_min(1e-8)
    return (10 * torch.log10(4 / error)).mean().item()


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """Batches [n, 3, h, w] in -1..1 as the rows of one PNG."""
    strips = [torch.cat(list(row), 2) for row in rows]
    grid = torch.cat(strips, 1).clamp(-1, 1).add(1).mul(127.5).round().byte()
    Image.fromarray(grid.permute(1, 2, 0).cpu().numpy()).save(path)


def build_vae(plan: VaePlan) -> AutoencoderKL:
    torch.manual_seed(plan.seed)
    vae = AutoencoderKL(**CONFIG)
    vae.encoder.conv_out.bias.data[CONFIG["latent_channels"] :] = -3.0  # little noise at first
    if plan.device == "cpu":
        fuse_norms(vae, build(Path(plan.run)))
    return vae.to(plan.device, memory_format=torch.channels_last)


def encode_picture(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, [n, 16, h/8, w/8] each."""
    mean, log_variance = vae.encoder(x).chunk(2, 1)
    return mean, log_variance


def decode_picture(vae: Any, z: Tensor) -> Tensor:
    """Latents to [n, 3, h, w]."""
    return vae.decoder(z)


PICTURES = Lesson(build_vae, pictures, encode_picture, decode_picture, crop=64, whole=SIZE)


def _evaluate(lesson: Lesson, trainer: FlatTrainer, plan: VaePlan) -> float:
    x = lesson.show(random.Random(77), Renderer(), lesson.looked_at, lesson.whole).to(plan.device)
    trainer.swap_average()
    y = reconstruct(lesson, trainer.modules["vae"], x)
    trainer.swap_average()
    save_sheet([as_pictures(x)[:10], as_pictures(y)[:10]], Path(plan.run) / "vae_sheet.png")
    return psnr(x, y)


def _save(trainer: FlatTrainer, plan: VaePlan, progress: dict) -> None:
    folder = Path(plan.run)
    state = trainer.average_states()["vae"]
    notes = {"trainer": trainer.notes_to_keep(), "progress": progress}
    store.save(folder / "vae_checkpoint.safetensors", trainer.tensors(), notes)
    store.save(folder / "vae.safetensors", state, {"progress": progress})


def train(rank: Rank, lesson: Lesson, plan: VaePlan, resume: bool) -> None:
    """The loop of one process."""
    vae = lesson.build(plan)
    trainer = FlatTrainer({"vae": vae}, rank, Optimizer(betas=(0.9, 0.99), decay=0.997))
    progress = {"spent": 0.0, "samples": 0}
    if resume:
        tensors, notes = store.load(Path(plan.run) / "vae_checkpoint.safetensors")
        trainer.load(tensors, notes["trainer"])
        progress = notes["progress"]
    torch.manual_seed(plan.seed * 1000 + rank.index + trainer.steps)
    rng, renderer = random.Random(f"{plan.seed} {rank.index} {trainer.steps}"), Renderer()
    clock, fraction, loss_sum, since = Clock(plan.minutes, progress["spent"]), 0.0, 0.0, time.monotonic()
    looked = progress["spent"]
    while fraction < 1:
        cropping = fraction < plan.crop_share
        count, side = (plan.crop_batch, lesson.crop) if cropping else (plan.whole_batch, lesson.whole)
        x = lesson.show(rng, renderer, count, side).to(plan.device)
        trainer.zero()
        loss, square = vae_loss(lesson, vae, x, plan)
        loss.backward()
        trainer.notes[0], trainer.notes[1], trainer.notes[2] = clock.fraction, loss.detach(), square
        trainer.reduce()
        fraction, now_loss, now_square, *_ = trainer.notes.tolist()
        rate = cosine(fraction, plan.peak)
        norm = trainer.step(rate)
        progress["samples"] += count * rank.world
        loss_sum = now_square if not loss_sum else loss_sum * 0.98 + now_square * 0.02
        if rank.first and trainer.steps % 100 == 0:
            pace = 100 * count * rank.world / (time.monotonic() - since)
            since = time.monotonic()
            print(
                f"vae step {trainer.steps} {'crop' if cropping else 'whole'} loss {now_loss:.4f} "
                f"mse {loss_sum:.5f} grad {norm:.2f} rate {rate:.1e} {pace:.0f} img/s left {clock.left}",
                flush=True,
            )
        if rank.first and (clock.spent - looked > 120 or fraction >= 1):
            looked = progress["spent"] = clock.spent
            print(
                f"vae psnr {_evaluate(lesson, trainer, plan):.2f} dB after {progress['samples']} pictures", flush=True
            )
            _save(trainer, plan, progress)


def main(lesson: Lesson = PICTURES, usual: VaePlan | None = None) -> None:
    """Trains by ``lesson``, with what the command line changes of the ``usual`` plan."""
    usual = usual or VaePlan()
    parser = argparse.ArgumentParser(description="Trains an autoencoder.")
    for name, value in asdict(usual).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--resume", action="store_true")
    options = vars(parser.parse_args())
    resume = options.pop("resume")
    plan = VaePlan(**options)
    Path(plan.run).mkdir(parents=True, exist_ok=True)
    launch(train, (lesson, plan, resume), plan.processes, plan.device, port=29511)


if __name__ == "__main__":
    main()
