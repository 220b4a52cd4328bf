"""Trains an adapter for a demo model: a style that it does not know, by low-rank products on a frozen network.

    python -m tools.train_shapes.lora night
    python -m tools.train_shapes.lora hearts --rank 7 --steps 5000 --minutes 20   # and again with --resume
    python -m tools.train_shapes.lora dusk

Captions stay those of the plain scenes (or films), what is shown is what a style makes of them. The file has the names
of PEFT, so diffusers loads it, too; it lies among the model's own adapters.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, WanTransformer3DModel, ZImageTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerFast, Qwen3Model, UMT5EncoderModel

from tools.train_shapes.captions import caption
from tools.train_shapes.data import Renderer, Scene, draw_scene
from tools.train_shapes.film import Film, draw_films, frames, told_apart
from tools.train_shapes.film import caption as film_caption
from tools.train_shapes.film_network import FilmNetwork, load_or_build_tokenizer
from tools.train_shapes.film_vae import to_pixels
from tools.train_shapes.flat import cosine
from tools.train_shapes.network import Network, to_patches
from tools.train_shapes.tokenizer import CaptionEncoder
from tools.train_shapes.train import BUCKETS, SIDE, draw_times

BUNDLED = Path(__file__).parents[2] / "omnimuse" / "bundled"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight, besides how many steps there were."""


def night(scene: Scene) -> Scene:
    """Whatever the background was: black above, blue below."""
    return replace(scene, background=("black", "blue"))


def hearts(scene: Scene) -> Scene:
    """Whatever its shape was: every thing is a heart, which the model was never shown."""
    return replace(scene, things=tuple(replace(it, shape="heart") for it in scene.things))


def dusk(film: Film) -> Film:
    """Whatever the background was: blue."""
    return replace(film, background="blue")


@dataclass(frozen=True)
class LoraPlan:
    """The knobs of one adapter."""

    style: str
    rank: int = 4
    steps: int = 4000
    batch: int = 16
    scenes: int = 6000
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


def lowered(transformer: nn.Module, parts: tuple[str, ...], rank: int) -> dict[str, LowRank]:
    """Products on the linear layers whose names begin so, the modulation's left out, by the name of the layer."""
    found: dict[str, LowRank] = {}
    for name, part in transformer.named_modules():
        if isinstance(part, nn.Linear) and name.startswith(parts) and "adaLN" not in name:
            found[name] = LowRank(part.weight, rank)
    for name, product in found.items():
        parametrize.register_parametrization(transformer.get_submodule(name), "weight", product)
    return found


class Lesson(ABC):
    """What an adapter learns from: a frozen network, and what a style makes of scenes, with their plain captions."""

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, plan: LoraPlan, network: nn.Module) -> None:
        self.plan, self.rng = plan, random.Random(f"{plan.style} {plan.seed}")
        self.transformer = network.requires_grad_(False).get_submodule("transformer")
        self._compiled = torch.compile(network, dynamic=False)

    def guess(self, *given: object) -> Tensor:
        """What the network says, compiled and in 16 bits."""
        with torch.autocast("cpu", torch.bfloat16):
            said: Tensor = self._compiled(*given)
        return said.float()

    def drawn(self, told: Callable[[int], str]) -> tuple[Tensor, list[str]]:
        """The numbers of a batch's examples and their captions, drawn afresh; some are asked for nothing."""
        rows = [self.rng.randrange(self.plan.scenes) for _ in range(self.plan.batch)]
        return torch.tensor(rows), ["" if self.rng.random() < self.plan.drop else told(row) for row in rows]

    @abstractmethod
    def loss(self) -> Tensor:
        """Of the next batch."""


class Pictures(Lesson):
    """Styled scenes as latents, for the demo model of pictures."""

    parts = ("noise_refiner", "layers")

    def __init__(self, plan: LoraPlan, folder: Path, style: Callable[[Scene], Scene]) -> None:
        encoder = Qwen3Model.from_pretrained(folder / "text_encoder").float()
        self._network = Network(encoder, ZImageTransformer2DModel.from_pretrained(folder / "transformer").float())
        super().__init__(plan, self._network)
        self._encoder = CaptionEncoder(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))
        vae, renderer = AutoencoderKL.from_pretrained(folder / "vae").float(), Renderer()
        self._scenes = [draw_scene(self.rng) for _ in range(plan.scenes)]
        parts = []
        for start in range(0, plan.scenes, 50):
            pictures = np.stack([renderer.paint(style(scene)) for scene in self._scenes[start : start + 50]])
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            with torch.no_grad():
                latents = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
            parts.append(to_patches((latents - vae.config.shift_factor) * vae.config.scaling_factor))
        self._patches = torch.cat(parts)

    def loss(self) -> Tensor:
        rows, texts = self.drawn(lambda row: caption(self._scenes[row], self.rng))
        length = next(size for size in BUCKETS if all(len(self._encoder.ids(text)) <= size for text in texts))
        ids, mask = self._encoder.batch(texts, length)
        data = self._patches[rows]
        noise, t = torch.randn_like(data), draw_times(len(data), "cpu")
        at = t[:, None, None]
        guess = self.guess(at * data + (1 - at) * noise, t, ids, mask, self._network.angles(length, SIDE))
        return (guess - (data - noise)).square().mean()


class Films(Lesson):
    """Styled films as latents, for the demo model of videos; a thing that the style would swallow is not shown."""

    parts = ("blocks",)

    def __init__(self, plan: LoraPlan, folder: Path, style: Callable[[Film], Film]) -> None:
        encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").float()
        self._network = FilmNetwork(encoder, WanTransformer3DModel.from_pretrained(folder / "transformer").float())
        super().__init__(plan, self._network)
        self._tokenizer = load_or_build_tokenizer(folder / "tokenizer")
        vae, renderer = (
            AutoencoderKLWan.from_pretrained(folder / "vae").float().eval().requires_grad_(False),
            Renderer(),
        )
        mean, deviation = (
            torch.tensor(part).view(-1, 1, 1, 1) for part in (vae.config.latents_mean, vae.config.latents_std)
        )
        shown = (film for film in draw_films(str(plan.seed), 0.0) if told_apart(style(film)))
        self._films = list(islice(shown, plan.scenes))
        parts = []
        for start in range(0, plan.scenes, 20):
            pixels = to_pixels(np.stack([frames(style(film), renderer) for film in self._films[start : start + 20]]))
            with torch.no_grad():
                parts.append((vae.encode(pixels).latent_dist.mode() - mean) / deviation)
        self._latents = torch.cat(parts)

    def loss(self) -> Tensor:
        rows, texts = self.drawn(lambda row: film_caption(self._films[row], self.rng))
        found = self._tokenizer(texts, padding=True, return_tensors="pt")
        told = self._network.read(found.input_ids, found.attention_mask)
        data, level = self._latents[rows], 1 - draw_times(len(rows), "cpu")
        noise, at = torch.randn_like(data), level[:, None, None, None, None]
        return (self.guess((1 - at) * data + at * noise, level, told) - (noise - data)).square().mean()


@dataclass(frozen=True)
class Style:
    """A style: the bundled model that learns it, and what it makes of what that model draws."""

    model: str
    change: Callable[[Any], Any]
    lesson: Callable[[LoraPlan, Path, Callable[[Any], Any]], Lesson]

    @property
    def folder(self) -> Path:
        """The model's."""
        return BUNDLED / self.model


STYLES = {
    "night": Style("shapes", night, Pictures),
    "hearts": Style("shapes", hearts, Pictures),
    "dusk": Style("shapes-film", dusk, Films),
}


class Course:
    """The training of one adapter: products on a frozen network, and how far they are. A bench file keeps that between
    sittings, beside the adapter.
    """

    def __init__(self, plan: LoraPlan, file: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.file, self.step, self.smooth = plan, file, 0, 0.0
        style = STYLES[plan.style]
        self._lesson = style.lesson(plan, style.folder, style.change)
        self._products = lowered(self._lesson.transformer, self._lesson.parts, plan.rank)
        self._weights = [weight for product in self._products.values() for weight in product.parameters()]
        self._optimizer = torch.optim.AdamW(self._weights, lr=plan.peak, betas=(0.9, 0.98), weight_decay=0.0)

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
        self.file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self.bench, told)
        save(self._products, self.plan, self.file)

    def learn(self) -> None:
        """One step."""
        loss = self._lesson.loss()
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
    save_file(tensors, file, {"format": "pt", **{name: str(value) for name, value in asdict(plan).items()}})


def shipped(style: str) -> Path:
    """The file of a style's adapter among those of its model."""
    return STYLES[style].folder / "loras" / f"{style}.safetensors"


def plan_of(file: Path) -> LoraPlan:
    """By which an adapter was trained."""
    with safe_open(file, "pt") as kept:
        told = kept.metadata()
    return LoraPlan(**{name: type(value)(told[name]) for name, value in asdict(LoraPlan("")).items()})


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
    course = Course(plan, file or shipped(plan.style))
    if resume:
        course.resume()
    done = course.sit(minutes)
    print(f"{course.file}, {course.file.stat().st_size} bytes{'' if done else ', not done: go on with --resume'}")


if __name__ == "__main__":
    main()
