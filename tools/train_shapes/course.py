"""Stage 2, whatever is drawn: text encoder and transformer learn jointly by flow matching on cached latents.

x_t = t * data + (1 - t) * noise, and the network learns data - noise, or its negative. A ``Run`` writes
``model.safetensors`` (moving average, statistics) and ``train_checkpoint.safetensors`` (resume) under the run folder at
intervals, with a sheet of samples. The learning rate follows the clock, so a slow machine still ends its decay on time.
"""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.train_shapes import store
from tools.train_shapes.flat import FlatTrainer, Optimizer, cosine
from tools.train_shapes.parallel import Clock, Rank, launch
from tools.train_shapes.vae import save_sheet

SHIFT = 3.0  # static shift of the noise levels in the sampler and the shipped scheduler
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


def draw_times(count: int, device: str) -> Tensor:
    """Times [count] in 0..1 (1 is clean): four fifths logit-normal around 0.15, the rest uniform.

    What is where, and its shape, is settled between t = 0.05 and 0.4; the rest is learnt early.
    """
    uniform, bell = torch.rand(count, device=device), (torch.randn(count, device=device) - 1.7).sigmoid()
    return torch.where(torch.rand(count, device=device) < 0.2, uniform, bell)


def shifted(t: Tensor) -> Tensor:
    """Times in 0..1 (1 is clean) with their noise level 1 - t shifted as FlowMatchEulerDiscreteScheduler does."""
    return t / (SHIFT - (SHIFT - 1) * t)


def weighted(error: Tensor, objects: Tensor, extra: float) -> Tensor:
    """The mean of errors, where there is something to see ``1 + extra`` times as heavy; ``objects`` in 0..1."""
    weights = 1 + extra * objects
    return (error * weights).sum() / weights.sum()


class Run(ABC):
    """One process of stage 2 over ``modules``; what a batch is, and what is painted, its subclasses say."""

    def __init__(self, rank: Rank, plan: TrainPlan, modules: Mapping[str, nn.Module], again: str) -> None:
        """``again``: "resume" goes on with a run, "warm" begins anew from its weights, "" from nothing."""
        self.rank, self.plan, self.folder = rank, plan, Path(plan.run)
        if again == "warm":
            tensors, _ = store.load(self.folder / "model.safetensors")
            for name, module in modules.items():
                module.load_state_dict(store.under(name, tensors))
        self.trainer = FlatTrainer(dict(modules), rank, Optimizer((0.9, 0.98), plan.decay, plan.muon))
        self.progress = {"spent": 0.0, "samples": 0}
        if again == "resume":
            tensors, notes = store.load(self.folder / "train_checkpoint.safetensors")
            self.trainer.load(tensors, notes["trainer"])
            self.progress = notes["progress"]
        self.seed = f"{plan.seed} {rank.index} {self.trainer.steps}"
        torch.manual_seed(plan.seed * 1000 + rank.index + 10 * self.trainer.steps)

    @property
    @abstractmethod
    def statistics(self) -> dict[str, object]:
        """How latents enter the transformer, for whoever ships the model."""

    @abstractmethod
    def warm_up(self) -> None:
        """Compiles before the clock starts."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Of the next batch."""

    @abstractmethod
    def paint(self) -> list[Tensor]:
        """Samples as the rows of a sheet, each [n, 3, h, w] in -1..1."""

    def look(self) -> None:
        """Rank 0: saves, and paints the sheet with the moving average."""
        notes = {"statistics": self.statistics, "progress": self.progress, "plan": asdict(self.plan)}
        store.save(self.folder / "model.safetensors", store.prefixed(self.trainer.average_states()), notes)
        kept = {"trainer": self.trainer.notes_to_keep(), "progress": self.progress}
        store.save(self.folder / "train_checkpoint.safetensors", self.trainer.tensors(), kept)
        self.trainer.swap_average()
        save_sheet(self.paint(), self.folder / "sheet.png")
        self.trainer.swap_average()

    def loop(self) -> None:
        clock = Clock(self.plan.minutes, self.progress["spent"], self.plan.until)
        fraction, smooth = 0.0, 0.0
        since, looked, trainer = time.monotonic(), self.progress["spent"], self.trainer
        while fraction < 1:
            trainer.zero()
            loss = self.loss()
            loss.backward()
            trainer.notes[0], trainer.notes[1] = clock.fraction, loss.detach()
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
                self.look()


def _work(rank: Rank, kind: Callable[[Rank, TrainPlan, str], Run], plan: TrainPlan, again: str) -> None:
    torch.manual_seed(plan.seed)
    run = kind(rank, plan, again)
    if plan.compiled:
        started = time.monotonic()
        run.warm_up()
        rank.sum(torch.zeros(1))
        if rank.first:
            print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
    run.loop()


def main(kind: Callable[[Rank, TrainPlan, str], Run], usual: TrainPlan, about: str) -> None:
    """Trains with what the command line changes of the ``usual`` plan."""
    parser = argparse.ArgumentParser(description=about)
    for name, value in asdict(usual).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the run, its optimizer and its clock")
    again.add_argument("--warm", action="store_true", help="begin anew from the weights in RUN/model.safetensors")
    options = vars(parser.parse_args())
    resume, warm, eager = (options.pop(name) for name in ("resume", "warm", "eager"))
    plan = TrainPlan(**options, compiled=not eager)
    launch(_work, (kind, plan, "resume" if resume else "warm" if warm else ""), plan.processes, plan.device, port=29512)
