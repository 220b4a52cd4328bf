"""Trains an adapter for the demo model: a style that it does not know, by low-rank products on a frozen network.

    python -m tools.train_shapes.lora night --model omnimuse/bundled/shapes
    python -m tools.train_shapes.lora hearts --rank 6 --steps 450 --scenes 600 --minutes 4   # and again with --resume

Captions stay those of the plain scenes, pictures are those of the scenes that a style makes of them. The file has the
names of PEFT, so diffusers loads it, too; it lies among the model's own adapters.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerFast, Qwen3Model

from tools.train_shapes.captions import caption
from tools.train_shapes.data import Renderer, Scene, draw_scene
from tools.train_shapes.flat import cosine
from tools.train_shapes.network import Network, to_patches
from tools.train_shapes.tokenizer import CaptionEncoder
from tools.train_shapes.train import BUCKETS, SIDE, draw_times

PARTS = ("noise_refiner", "layers")
"""Where the products go: all linear layers of these blocks but the modulation."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight, besides how many steps there were."""


def night(scene: Scene) -> Scene:
    """Whatever the background was: black above, blue below."""
    return replace(scene, background=("black", "blue"))


def hearts(scene: Scene) -> Scene:
    """Whatever its shape was: every thing is a heart, which the model was never shown."""
    return replace(scene, things=tuple(replace(it, shape="heart") for it in scene.things))


STYLES: dict[str, Callable[[Scene], Scene]] = {"night": night, "hearts": hearts}


@dataclass(frozen=True)
class LoraPlan:
    """The knobs of one adapter."""

    style: str
    model: str = "omnimuse/bundled/shapes"
    rank: int = 4
    steps: int = 120
    batch: int = 8
    scenes: int = 120
    peak: float = 4e-3
    drop: float = 0.15
    seed: int = 1


class LowRank(nn.Module):
    """A weight [N, K] with a product of rank R added to it; at the beginning nothing."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def lowered(transformer: nn.Module, rank: int) -> dict[str, LowRank]:
    """Products on the linear layers of `PARTS`, by the name of the layer."""
    found: dict[str, LowRank] = {}
    for name, part in transformer.named_modules():
        if isinstance(part, nn.Linear) and name.startswith(PARTS) and "adaLN" not in name:
            found[name] = LowRank(part.weight, rank)
    for name, product in found.items():
        parametrize.register_parametrization(transformer.get_submodule(name), "weight", product)
    return found


class Lesson:
    """Styled scenes as latents, with their plain captions."""

    def __init__(self, plan: LoraPlan, folder: Path) -> None:
        rng, renderer, style = random.Random(f"{plan.style} {plan.seed}"), Renderer(), STYLES[plan.style]
        vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval().requires_grad_(False)
        self._scenes = [draw_scene(rng) for _ in range(plan.scenes)]
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        parts = []
        for start in range(0, plan.scenes, 50):
            pictures = np.stack([renderer.paint(style(scene)) for scene in self._scenes[start : start + 50]])
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            with torch.no_grad():
                latents = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            parts.append(to_patches((latents - shift) * scale))
        self._patches = torch.cat(parts)
        self._encoder = CaptionEncoder(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))
        self._plan, self._rng = plan, rng

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """(patches [B, 64, 64], ids, mask [B, L]), captions drawn afresh."""
        rows = [self._rng.randrange(len(self._scenes)) for _ in range(self._plan.batch)]
        texts = ["" if self._rng.random() < self._plan.drop else caption(self._scenes[row], self._rng) for row in rows]
        length = next(size for size in BUCKETS if all(len(self._encoder.ids(text)) <= size for text in texts))
        ids, mask = self._encoder.batch(texts, length)
        return self._patches[torch.tensor(rows)], ids, mask


class Course:
    """The training of one adapter: products on a frozen network, and how far they are. A bench file keeps that between
    sittings, beside the adapter.
    """

    def __init__(self, plan: LoraPlan, folder: Path, file: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.file, self.step, self.smooth = plan, file, 0, 0.0
        transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer").float()
        encoder = Qwen3Model.from_pretrained(folder / "text_encoder").float()
        self._network = Network(encoder, transformer).requires_grad_(False)
        self._products = lowered(transformer, plan.rank)
        self._weights = [weight for product in self._products.values() for weight in product.parameters()]
        self._optimizer = torch.optim.AdamW(self._weights, lr=plan.peak, betas=(0.9, 0.98), weight_decay=0.0)
        self._lesson = Lesson(plan, folder)

    @property
    def bench(self) -> Path:
        """Where a sitting leaves off."""
        return self.file.with_suffix(".bench")

    def resume(self) -> None:
        """Go on where the last sitting ended; ValueError where it had another plan."""
        with safe_open(self.bench, "pt") as kept:
            told = kept.metadata()
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - not a dict
        if told["plan"] != (plan := json.dumps(asdict(self.plan))):
            raise ValueError(f"{self.bench} was left with {told['plan']}, and asked for is {plan}")
        self.step, self.smooth = int(told["step"]), float(told["smooth"])
        for number, weight in enumerate(self._weights):
            weight.data.copy_(tensors[f"{number}.weight"])
            moments = {name: tensors[f"{number}.{name}"] for name in MOMENTS}
            self._optimizer.state[weight] = {"step": torch.tensor(float(self.step)), **moments}
        torch.manual_seed(self.plan.seed + self.step)

    def sit(self, minutes: float) -> bool:
        """Train for so long; whether the plan is done. What there is is written at intervals, the adapter, too."""
        began = time.monotonic()
        while self.step < self.plan.steps and time.monotonic() - began < 60 * minutes:
            self.learn()
            if self.step % 20 == 0:
                print(f"step {self.step} loss {self.smooth:.4f} after {time.monotonic() - began:.0f} s", flush=True)
                self.leave_off()
        self.leave_off()
        if done := self.step >= self.plan.steps:
            self.bench.unlink()
        return done

    def leave_off(self) -> None:
        """Keep how far it is, and write the adapter as it is."""
        tensors = {f"{number}.weight": weight.data for number, weight in enumerate(self._weights)}
        for number, weight in enumerate(self._weights):
            tensors |= {f"{number}.{name}": self._optimizer.state[weight][name] for name in MOMENTS}
        told = {"plan": json.dumps(asdict(self.plan)), "step": str(self.step), "smooth": str(self.smooth)}
        save_file(tensors, self.bench, told)
        save(self._products, self.plan, self.file)

    def learn(self) -> None:
        """One step."""
        data, ids, mask = self._lesson.batch()
        noise, t = torch.randn_like(data), draw_times(len(data), "cpu")
        at = t[:, None, None]
        angles = self._network.angles(ids.shape[1], SIDE)
        guess = self._network(at * data + (1 - at) * noise, t, ids, mask, angles)
        loss = (guess - (data - noise)).square().mean()
        for group in self._optimizer.param_groups:
            group["lr"] = cosine(self.step / self.plan.steps, self.plan.peak)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self.smooth = self.smooth * 0.95 + loss.item() * 0.05 if self.step else loss.item()
        self.step += 1


def save(products: dict[str, LowRank], plan: LoraPlan, file: Path) -> None:
    """The products in 16 bits, by the names that PEFT has for them."""
    tensors = {}
    for name, product in products.items():
        tensors[f"transformer.{name}.lora_A.weight"] = product.down.detach().half().contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = product.up.detach().half().contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {name: str(value) for name, value in asdict(plan).items() if name != "model"}
    save_file(tensors, file, {"format": "pt", **told})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("style", choices=STYLES)
    for name, value in asdict(LoraPlan("")).items():
        if name != "style":
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--to", type=Path, help="the file (default: among the adapters of the model)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of one sitting; --resume goes on")
    parser.add_argument("--resume", action="store_true", help="go on where the last sitting ended")
    options = vars(parser.parse_args())
    file, minutes, resume = options.pop("to"), options.pop("minutes"), options.pop("resume")
    plan = LoraPlan(**options)
    folder = Path(plan.model)
    course = Course(plan, folder, file or folder / "loras" / f"{plan.style}.safetensors")
    if resume:
        course.resume()
    done = course.sit(minutes)
    print(f"{course.file}, {course.file.stat().st_size} bytes{'' if done else ', not done: go on with --resume'}")


if __name__ == "__main__":
    main()
