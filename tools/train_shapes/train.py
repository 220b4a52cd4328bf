"""Stage 2: trains text encoder and transformer of the demo model of pictures; the loop is that of ``course.py``."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from tools.train_shapes.captions import caption
from tools.train_shapes.course import Run, TrainPlan, draw_times, main, shifted, weighted
from tools.train_shapes.latents import LatentSet, load_or_encode, load_vae
from tools.train_shapes.network import Network, build_text_encoder, build_transformer, from_patches
from tools.train_shapes.parallel import Rank
from tools.train_shapes.tokenizer import CaptionEncoder, load_or_train

BUCKETS = (32, 64, 96)  # padded caption lengths; the transformer pads to multiples of 32
SIDE = 8
SHEET_PROMPTS = (
    "a red circle on a blue background",
    "a green triangle above a white square",
    "a yellow star",
    "a purple ring in the top left on a white background",
    "a black cross on a pink background",
    "a blue square to the left of an orange circle",
    "a cyan star below a red square on a black background",
    "a white triangle inside a purple circle",
    "a red square, a green circle and a blue triangle",
    "an orange cross on a blue to white gradient background",
)


class Feed:
    """Endless batches: scenes at random, captions drawn afresh, one caption bucket per batch."""

    def __init__(self, found: LatentSet, encoder: CaptionEncoder, plan: TrainPlan, rng: random.Random) -> None:
        self._set, self._encoder, self._plan, self._rng = found, encoder, plan, rng
        self._waiting: dict[int, list[tuple[int, str]]] = {length: [] for length in BUCKETS}

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(patches [B, 64, 64], objects [B, 64] in 0..1, ids, mask [B, L])."""
        while True:
            row = self._rng.randrange(len(self._set.scenes))
            text = "" if self._rng.random() < self._plan.drop else caption(self._set.scenes[row], self._rng)
            length = next(bucket for bucket in BUCKETS if len(self._encoder.ids(text)) <= bucket)
            waiting = self._waiting[length]
            waiting.append((row, text))
            if len(waiting) == self._plan.batch:
                self._waiting[length] = []
                rows = torch.tensor([row for row, _ in waiting])
                ids, mask = self._encoder.batch([text for _, text in waiting], length)
                return self._set.patches[rows], self._set.objects[rows].float() / 255, ids, mask


class Step(torch.nn.Module):
    """The loss of one batch; compiled as a whole."""

    def __init__(self, network: Network, object_weight: float) -> None:
        super().__init__()
        self.network, self._object_weight = network, object_weight

    def forward(self, batch: tuple[Tensor, ...], noise: Tensor, t: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        data, objects, ids, mask = batch
        data = data.float()
        at = t[:, None, None]
        with torch.autocast(data.device.type, torch.bfloat16):
            guess = self.network((at * data + (1 - at) * noise).bfloat16(), t, ids, mask, angles)
        error = (guess.float() - (data - noise)).square().mean(-1)  # [B, P]
        return weighted(error, objects, self._object_weight)


@torch.no_grad()
def sample(
    network: Network,
    encoder: CaptionEncoder,
    prompts: list[str],
    seed: int,
    steps: int = 10,
    guidance: float = 2.0,
) -> Tensor:
    """Normalised latents [n, 16, 16, 16] by Euler steps from pure noise, guided as the pipeline does."""
    device = network.transformer.x_pad_token.device
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), SIDE * SIDE, 64, generator=generator).to(device)
    longest = max(len(encoder.ids(text)) for text in prompts)
    length = next(bucket for bucket in BUCKETS if longest <= bucket)
    ids, mask = (part.to(device) for part in encoder.batch([*prompts, *[""] * len(prompts)], length))
    angles = tuple(part.to(device) for part in network.angles(length, SIDE))
    times = shifted(torch.linspace(0, 1, steps + 1)).tolist()
    for now, then in itertools.pairwise(times):
        t = torch.full((2 * len(prompts),), now, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            wanted, free = network(x.repeat(2, 1, 1).bfloat16(), t, ids, mask, angles).float().chunk(2)
        x = x + (wanted + guidance * (wanted - free)) * (then - now)
    return from_patches(x, SIDE)


def build_network(vocabulary: int, seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(build_text_encoder(vocabulary), build_transformer())


class Pictures(Run):
    """Teaches the demo model to draw pictures."""

    def __init__(self, rank: Rank, plan: TrainPlan, again: str) -> None:
        self.encoder = CaptionEncoder(load_or_train(Path(plan.run) / "tokenizer"))
        self.network = build_network(550, plan.seed).to(rank.device)
        modules = {"text_encoder": self.network.text_encoder, "transformer": self.network.transformer}
        super().__init__(rank, plan, modules, again)
        found, self._statistics = load_or_encode(rank, self.folder, plan.scenes, plan.seed, plan.held_share)
        self.feed = Feed(found, self.encoder, plan, random.Random(self.seed))
        self.angles = {
            length: tuple(part.to(rank.device) for part in self.network.angles(length, SIDE)) for length in BUCKETS
        }
        step = Step(self.network, plan.object_weight)
        self.step = torch.compile(step, dynamic=False) if plan.compiled else step
        self._vae = load_vae(self.folder, rank.device)

    @property
    def statistics(self) -> dict[str, object]:
        return asdict(self._statistics)

    def warm_up(self) -> None:
        for length in BUCKETS:
            ids, mask = self.encoder.batch([""] * self.plan.batch, length)
            data = torch.zeros(self.plan.batch, SIDE * SIDE, 64, dtype=torch.bfloat16)
            self._loss((data, torch.zeros(self.plan.batch, SIDE * SIDE), ids, mask)).backward()

    def loss(self) -> Tensor:
        return self._loss(self.feed.next())

    def _loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        batch = tuple(part.to(self.rank.device) for part in batch)
        noise = torch.randn(batch[0].shape, device=self.rank.device)
        t = draw_times(len(noise), self.rank.device)
        return self.step(batch, noise, t, self.angles[batch[2].shape[1]])

    def paint(self) -> list[Tensor]:
        return [self._decode(sample(self.network, self.encoder, list(SHEET_PROMPTS), seed)) for seed in (1, 2)]

    def _decode(self, z: Tensor) -> Tensor:
        z = z / self._statistics.scale + self._statistics.shift
        with torch.no_grad(), torch.autocast(z.device.type, torch.bfloat16):
            return self._vae.decoder(z.contiguous(memory_format=torch.channels_last)).float()


if __name__ == "__main__":
    main(Pictures, TrainPlan(), "Trains text encoder and transformer of the demo model.")
