"""Stage 2: trains text encoder and transformer jointly by flow matching on cached latents.

x_t = t * data + (1 - t) * noise, and the network predicts data - noise.  Writes ``model.safetensors`` (moving
average, statistics) and ``train_checkpoint.safetensors`` (resume) under the run folder at intervals, with a sheet of
samples.  The learning rate follows the clock, so a slow machine still ends its decay on time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tools.train_shapes import store
from tools.train_shapes.captions import caption
from tools.train_shapes.flat import FlatTrainer, Optimizer, cosine
from tools.train_shapes.latents import LatentSet, load_or_encode, load_vae
from tools.train_shapes.network import Network, build_text_encoder, build_transformer, from_patches
from tools.train_shapes.parallel import Clock, Rank, launch
from tools.train_shapes.tokenizer import CaptionEncoder, load_or_train
from tools.train_shapes.vae import save_sheet

BUCKETS = (32, 64, 96)  # padded caption lengths; the transformer pads to multiples of 32
SIDE = 8
SHIFT = 3.0  # static shift of the noise levels in the sampler and the shipped scheduler
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
LOOK_EVERY = 300.0  # seconds between checkpoints and sheets


@dataclass(frozen=True)
class TrainPlan:
    """The knobs of stage 2; batch and scenes are per process."""

    run: str = "runs/shapes"
    minutes: float = 60.0
    until: str = ""
    batch: int = 48
    peak: float = 1.5e-3
    scenes: int = 60_000
    held_share: float = 0.0
    seed: int = 1
    processes: int = 2
    device: str = "cpu"
    compiled: bool = True
    drop: float = 0.1
    object_weight: float = 1.0
    decay: float = 0.9985
    muon: float = 2.7


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


def draw_times(count: int, device: str) -> Tensor:
    """Times [count] in 0..1 (1 is clean): four fifths logit-normal around 0.15, the rest uniform.

    What is where, and its shape, is settled between t = 0.05 and 0.4; the rest is learnt early.
    """
    uniform, bell = torch.rand(count, device=device), (torch.randn(count, device=device) - 1.7).sigmoid()
    return torch.where(torch.rand(count, device=device) < 0.2, uniform, bell)


def shifted(t: Tensor) -> Tensor:
    """Times in 0..1 (1 is clean) with their noise level 1 - t shifted as FlowMatchEulerDiscreteScheduler does."""
    return t / (SHIFT - (SHIFT - 1) * t)


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
        weights = 1 + self._object_weight * objects
        error = (guess.float() - (data - noise)).square().mean(-1)  # [B, P]
        return (error * weights).sum() / weights.sum()


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


class Run:
    """One process of stage 2."""

    def __init__(self, rank: Rank, plan: TrainPlan, resume: bool, warm: bool) -> None:
        self.rank, self.plan, self.folder = rank, plan, Path(plan.run)
        self.encoder = CaptionEncoder(load_or_train(self.folder / "tokenizer"))
        self.network = build_network(550, plan.seed).to(rank.device)
        if warm:
            tensors, _ = store.load(self.folder / "model.safetensors")
            self.network.text_encoder.load_state_dict(store.under("text_encoder", tensors))
            self.network.transformer.load_state_dict(store.under("transformer", tensors))
        modules = {"text_encoder": self.network.text_encoder, "transformer": self.network.transformer}
        self.trainer = FlatTrainer(modules, rank, Optimizer((0.9, 0.98), plan.decay, plan.muon))
        self.progress = {"spent": 0.0, "samples": 0}
        if resume:
            tensors, notes = store.load(self.folder / "train_checkpoint.safetensors")
            self.trainer.load(tensors, notes["trainer"])
            self.progress = notes["progress"]
        found, self.statistics = load_or_encode(rank, self.folder, plan.scenes, plan.seed, plan.held_share)
        rng = random.Random(f"{plan.seed} {rank.index} {self.trainer.steps}")
        torch.manual_seed(plan.seed * 1000 + rank.index + 10 * self.trainer.steps)
        self.feed = Feed(found, self.encoder, plan, rng)
        self.angles = {
            length: tuple(part.to(rank.device) for part in self.network.angles(length, SIDE)) for length in BUCKETS
        }
        step = Step(self.network, plan.object_weight)
        self.step = torch.compile(step, dynamic=False) if plan.compiled else step
        self._vae = load_vae(self.folder, rank.device)

    def warm_up(self) -> None:
        """Compiles every bucket before the clock starts."""
        started = time.monotonic()
        for length in BUCKETS:
            ids, mask = self.encoder.batch([""] * self.plan.batch, length)
            data = torch.zeros(self.plan.batch, SIDE * SIDE, 64, dtype=torch.bfloat16)
            self._backward((data, torch.zeros(self.plan.batch, SIDE * SIDE), ids, mask))
        self.rank.sum(torch.zeros(1))
        if self.rank.first:
            print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)

    def _backward(self, batch: tuple[Tensor, ...]) -> Tensor:
        batch = tuple(part.to(self.rank.device) for part in batch)
        noise = torch.randn(batch[0].shape, device=self.rank.device)
        t = draw_times(len(noise), self.rank.device)
        loss = self.step(batch, noise, t, self.angles[batch[2].shape[1]])
        loss.backward()
        return loss.detach()

    def _look(self) -> None:
        """Rank 0: saves, and paints the sheet with the moving average."""
        notes = {"statistics": asdict(self.statistics), "progress": self.progress, "plan": asdict(self.plan)}
        store.save(self.folder / "model.safetensors", store.prefixed(self.trainer.average_states()), notes)
        kept = {"trainer": self.trainer.notes_to_keep(), "progress": self.progress}
        store.save(self.folder / "train_checkpoint.safetensors", self.trainer.tensors(), kept)
        self.trainer.swap_average()
        rows = [self._decode(sample(self.network, self.encoder, list(SHEET_PROMPTS), seed)) for seed in (1, 2)]
        self.trainer.swap_average()
        save_sheet(rows, self.folder / "sheet.png")

    def _decode(self, z: Tensor) -> Tensor:
        z = z / self.statistics.scale + self.statistics.shift
        with torch.no_grad(), torch.autocast(z.device.type, torch.bfloat16):
            return self._vae.decoder(z.contiguous(memory_format=torch.channels_last)).float()

    def loop(self) -> None:
        clock = Clock(self.plan.minutes, self.progress["spent"], self.plan.until)
        fraction, smooth = 0.0, 0.0
        since, looked, trainer = time.monotonic(), self.progress["spent"], self.trainer
        while fraction < 1:
            trainer.zero()
            loss = self._backward(self.feed.next())
            trainer.notes[0], trainer.notes[1] = clock.fraction, loss
            trainer.reduce()
            fraction, now, *_ = trainer.notes.tolist()
            rate = cosine(fraction, self.plan.peak)
            norm = trainer.step(rate)
            self.progress["samples"] += self.plan.batch * self.rank.world
            smooth = now if not smooth else smooth * 0.98 + now * 0.02
            if self.rank.first and trainer.steps % 50 == 0:
                pace = 50 * self.plan.batch * self.rank.world / (time.monotonic() - since)
                since = time.monotonic()
                print(
                    f"step {trainer.steps} samples {self.progress['samples']} loss {smooth:.4f} grad {norm:.2f} "
                    f"rate {rate:.1e} {pace:.0f} samples/s left {clock.left}",
                    flush=True,
                )
            if self.rank.first and (clock.spent - looked > LOOK_EVERY or fraction >= 1):
                looked = self.progress["spent"] = clock.spent
                self._look()


def _work(rank: Rank, plan: TrainPlan, resume: bool, warm: bool) -> None:
    run = Run(rank, plan, resume, warm)
    if plan.compiled:
        run.warm_up()
    run.loop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(TrainPlan()).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the run, its optimizer and its clock")
    again.add_argument("--warm", action="store_true", help="begin anew from the weights in RUN/model.safetensors")
    options = vars(parser.parse_args())
    resume, warm, eager = (options.pop(name) for name in ("resume", "warm", "eager"))
    plan = TrainPlan(**options, compiled=not eager)
    launch(_work, (plan, resume, warm), plan.processes, plan.device, port=29512)


if __name__ == "__main__":
    main()
