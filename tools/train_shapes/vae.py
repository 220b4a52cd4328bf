"""Stage 1: trains the autoencoder (diffusers AutoencoderKL, factor 8, 16 latent channels).

First on 64x64 crops around edges, then on whole pictures.  Writes ``vae.safetensors`` (moving average, latent
statistics) and ``vae_checkpoint.safetensors`` (resume) under the run folder.  Gate before stage 2: ``grade.py``.

Letters: n pictures, c channels, h w pixels in -1..1.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

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
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def edge_weights(x: Tensor, extra: float) -> Tensor:
    """1 on flat areas, up to 1 + extra within two pixels of an edge; [n, 1, h, w]."""
    spread = F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1)
    return 1 + extra * F.max_pool2d(spread.amax(1, keepdim=True), 3, 1, 1).clamp(0, 1)


def vae_loss(vae: AutoencoderKL, x: Tensor, plan: VaePlan) -> tuple[Tensor, Tensor]:
    """(loss, mean square error) of reconstructing ``x`` through a sampled latent."""
    with torch.autocast(x.device.type, torch.bfloat16):
        mean, log_variance = vae.encoder(x).chunk(2, 1)  # [n, 16, h/8, w/8] each
        mean, log_variance = mean.float(), log_variance.float().clamp(-12, 6)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        y = vae.decoder(z)
    difference = y.float() - x
    square = difference * difference
    reconstruction = ((difference.abs() + 2 * square) * edge_weights(x, plan.edge)).mean()
    kl = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction + plan.kl * kl, square.mean().detach()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """x [n, 3, h, w] through the mean latent and back, float."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return vae.decoder(vae.encoder(x).chunk(2, 1)[0]).float()


def psnr(x: Tensor, y: Tensor) -> float:
    """Decibels between two batches in -1..1, averaged over pictures."""
    error = (x - y.clamp(-1, 1)).square().mean((1, 2, 3)).clamp_min(1e-8)
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


def _evaluate(trainer: FlatTrainer, plan: VaePlan) -> float:
    x = pictures(random.Random(77), Renderer(), 16, SIZE).to(plan.device)
    trainer.swap_average()
    y = reconstruct(trainer.modules["vae"], x)
    trainer.swap_average()
    save_sheet([x[:10], y[:10]], Path(plan.run) / "vae_sheet.png")
    return psnr(x, y)


def _save(trainer: FlatTrainer, plan: VaePlan, progress: dict) -> None:
    folder = Path(plan.run)
    state = trainer.average_states()["vae"]
    notes = {"trainer": trainer.notes_to_keep(), "progress": progress}
    store.save(folder / "vae_checkpoint.safetensors", trainer.tensors(), notes)
    store.save(folder / "vae.safetensors", state, {"progress": progress})


def train(rank: Rank, plan: VaePlan, resume: bool) -> None:
    """The loop of one process."""
    vae = build_vae(plan)
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
        count, side = (plan.crop_batch, 64) if cropping else (plan.whole_batch, SIZE)
        x = pictures(rng, renderer, count, side).to(plan.device, memory_format=torch.channels_last)
        trainer.zero()
        loss, square = vae_loss(vae, x, plan)
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
            print(f"vae psnr {_evaluate(trainer, plan):.2f} dB after {progress['samples']} pictures", flush=True)
            _save(trainer, plan, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default=VaePlan.run)
    parser.add_argument("--minutes", type=float, default=VaePlan.minutes)
    parser.add_argument("--peak", type=float, default=VaePlan.peak)
    parser.add_argument("--processes", type=int, default=VaePlan.processes)
    parser.add_argument("--device", default=VaePlan.device)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    plan = VaePlan(options.run, options.minutes, options.peak, processes=options.processes, device=options.device)
    Path(plan.run).mkdir(parents=True, exist_ok=True)
    launch(train, (plan, options.resume), plan.processes, plan.device, port=29511)


if __name__ == "__main__":
    main()
