"""Stage 2 of the model of films: its text encoder and transformer; the loop is that of ``course.py``.

    python -m tools.train_shapes.film_train --run runs/film --minutes 45

Letters: B films, C channels of latents, f h w latents of a film (3, 8, 8).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.train_shapes import store
from tools.train_shapes.course import Run, TrainPlan, draw_times, main, shifted, weighted
from tools.train_shapes.data import Renderer
from tools.train_shapes.film import FRAMES, Film, caption, draw_films, frames
from tools.train_shapes.film_grade import FilmTask, as_frames, draw_film_tasks, grade
from tools.train_shapes.film_network import (
    FilmNetwork,
    build_text_encoder,
    build_transformer,
    load_or_build_tokenizer,
)
from tools.train_shapes.film_vae import CHANNELS, decode, encode, from_pixels, load_vae, to_pixels
from tools.train_shapes.latents import object_share
from tools.train_shapes.parallel import Rank

CELLS = 3, 8, 8
PLAN = TrainPlan("runs/film", 45.0, batch=32, peak=2e-3, scenes=5000, held_share=0.1, processes=1, object_weight=2.0)
_BATCH = 20


@dataclass
class FilmSet:
    """Films; their ``latents``, bf16 [n, C, f, h, w], normalised; ``objects``, how much of each the thing covers, uint8
    [n, f, h, w]; ``mean`` and ``deviation`` of the channels.
    """

    films: list[Film]
    latents: Tensor
    objects: Tensor
    mean: Tensor
    deviation: Tensor


def load_or_encode(rank: Rank, run: Path, plan: TrainPlan) -> FilmSet:
    """This process's films, encoded now or read from the run folder."""
    drawn = itertools.islice(draw_films(f"{plan.seed} {rank.index}", plan.held_share), plan.scenes)
    films = list(dict.fromkeys(drawn))  # few are different
    path = run / f"films_{rank.index}.safetensors"
    if not path.exists():
        vae, renderer, parts = load_vae(run, rank.device), Renderer(), []
        for first in range(0, len(films), _BATCH):
            x = to_pixels(np.stack([frames(film, renderer) for film in films[first : first + _BATCH]]))
            with torch.no_grad():
                parts.append(encode(vae, x.to(rank.device))[0].cpu())
            if rank.first and first % (_BATCH * 25) == 0:
                print(f"encoded {first} of {len(films)}", flush=True)
        z = torch.cat(parts)
        mean, deviation = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
        z = (z - mean[:, None, None, None]) / deviation[:, None, None, None]
        tensors = {"latents": z.bfloat16(), "mean": mean, "deviation": deviation}
        store.save(path, tensors, {"films": len(films)})
    tensors, _ = store.load(path)
    return FilmSet(
        films, tensors["latents"], torch.stack([_seen(film) for film in films]), tensors["mean"], tensors["deviation"]
    )


def _seen(film: Film) -> Tensor:
    """How much of every latent's square the thing covers in any of its frames, uint8 [f, h, w]."""
    frame, height, width = CELLS
    each = object_share(film.scenes).view(FRAMES, height, width)
    return torch.stack([each[0], *(part.amax(0) for part in each[1:].chunk(frame - 1))])


class Step(torch.nn.Module):
    """The loss of one batch; compiled as a whole."""

    def __init__(self, network: FilmNetwork, object_weight: float) -> None:
        super().__init__()
        self.network, self._object_weight = network, object_weight

    def forward(self, data: Tensor, objects: Tensor, told: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        at = level[:, None, None, None, None]
        with torch.autocast(data.device.type, torch.bfloat16):
            guess = self.network((1 - at) * data + at * noise, level, told)
        error = (guess.float() - (noise - data)).square().mean(1)  # [B, f, h, w]
        return weighted(error, objects, self._object_weight)


class Films(Run):
    """Teaches a model to draw films."""

    def __init__(self, rank: Rank, plan: TrainPlan, again: str) -> None:
        self.tokenizer = load_or_build_tokenizer(Path(plan.run) / "tokenizer")
        network = FilmNetwork(build_text_encoder(len(self.tokenizer)), build_transformer())
        self.network = network.to(rank.device)
        modules = {"text_encoder": network.text_encoder, "transformer": network.transformer}
        super().__init__(rank, plan, modules, again)
        self.known = load_or_encode(rank, self.folder, plan)
        self.rng = random.Random(self.seed)
        step = Step(self.network, plan.object_weight)
        self.step = torch.compile(step, dynamic=False) if plan.compiled else step
        self._vae = load_vae(self.folder, rank.device)
        self._tasks = draw_film_tasks(24, held_share=plan.held_share)

    @property
    def statistics(self) -> dict[str, object]:
        return {"latents_mean": self.known.mean.tolist(), "latents_std": self.known.deviation.tolist()}

    def read(self, captions: list[str]) -> Tensor:
        """Captions as the transformer reads them."""
        found = self.tokenizer(captions, padding=True, return_tensors="pt").to(self.rank.device)
        return self.network.read(found.input_ids, found.attention_mask)

    def warm_up(self) -> None:
        self.loss().backward()

    def loss(self) -> Tensor:
        rows = [self.rng.randrange(len(self.known.films)) for _ in range(self.plan.batch)]
        texts = ["" if self.rng.random() < self.plan.drop else caption(self.known.films[row], self.rng) for row in rows]
        data = self.known.latents[rows].float().to(self.rank.device)
        objects = self.known.objects[rows].float().div(255).to(self.rank.device)
        level = 1 - draw_times(len(rows), self.rank.device)
        return self.step(data, objects, self.read(texts), torch.randn_like(data), level)

    @torch.no_grad()
    def sample(self, tasks: list[FilmTask], steps: int = 12, guidance: float = 1.5) -> Tensor:
        """Films [n, 3, T, h, w] by Euler steps from pure noise, guided as the pipeline does."""
        device = self.rank.device
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(len(tasks), CHANNELS, *CELLS, generator=generator).to(device)
        told = self.read([task.prompt for task in tasks] + [""] * len(tasks))
        for now, then in itertools.pairwise((1 - shifted(torch.linspace(0, 1, steps + 1))).tolist()):
            level = torch.full((2 * len(tasks),), now, device=device)
            with torch.autocast(device, torch.bfloat16):
                wanted, free = self.network(x.repeat(2, 1, 1, 1, 1), level, told).float().chunk(2)
            x = x + (free + guidance * (wanted - free)) * (then - now)
        mean, deviation = (part.view(-1, 1, 1, 1).to(device) for part in (self.known.mean, self.known.deviation))
        return torch.cat([decode(self._vae, part) for part in (x * deviation + mean).split(_BATCH)])

    def paint(self) -> list[Tensor]:
        films = self.sample(self._tasks)
        shown = [as_frames(film) for film in from_pixels(films.cpu())]
        report, _ = grade(lambda prompts, seeds: shown, self._tasks)
        print(f"right {report.right:.1%} of {len(shown)} held out: {report.aspects}", flush=True)
        return [film.transpose(0, 1) for film in films[:10]]


if __name__ == "__main__":
    main(Films, PLAN, "Trains text encoder and transformer of the model of films.")
