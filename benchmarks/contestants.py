"""The two engines of the race behind one face: load a folder, draw wishes, say when each was finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.checkpoints import Race
from omnimuse import Config, DiffusionParams, Done, ModelConfig, Omni
from omnimuse.core.output import Event


@dataclass(frozen=True)
class Wish:
    """One request of the race."""

    prompt: str
    steps: int
    guidance: float
    height: int
    width: int
    outputs: int = 1
    seed: int = 0


class Contestant(Protocol):
    """One engine with one checkpoint loaded."""

    name: str

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        """Seconds from the call until each wish was finished; all wishes arrive at once."""
        ...

    def close(self) -> None: ...


class Ours:
    """omnimuse: all wishes in flight together."""

    name = "omnimuse"

    def __init__(self, race: Race, folder: Path, dtype: str) -> None:
        self.race = race
        self.omni = Omni(str(folder), config=Config(ModelConfig(str(folder), dtype=dtype, device="cpu")))

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        began, order, finished = time.perf_counter(), list[str](), dict[str, float]()

        def listen(event: Event) -> None:
            if event.request_id not in order:
                order.append(event.request_id)
            if isinstance(event, Done):
                finished[event.request_id] = time.perf_counter() - began

        results = self.omni.generate([w.prompt for w in wishes], [self.params(w) for w in wishes], progress=listen)
        for result in results:
            if result.error is not None:
                raise result.error
        return [finished[request_id] for request_id in order]

    def params(self, wish: Wish) -> DiffusionParams:
        """The wish in our words."""
        chosen: dict[str, Any] = {self.race.guided_by: wish.guidance, "num_frames": self.race.frames}
        return DiffusionParams(
            num_inference_steps=wish.steps, height=wish.height, width=wish.width, seed=wish.seed,
            num_outputs_per_prompt=wish.outputs, **chosen,
        )  # fmt: skip

    def close(self) -> None:
        self.omni.close()


class Diffusers:
    """diffusers: one wish after the other; outputs of one wish in one batch."""

    name = "diffusers"

    def __init__(self, race: Race, folder: Path, dtype: str) -> None:
        import diffusers

        self.race = race
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = getattr(diffusers, race.reference)
            self.pipe = kind.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.pipe.set_progress_bar_config(disable=True)

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        began = time.perf_counter()
        finished = []
        for wish in wishes:
            self._call(wish)
            finished.append(time.perf_counter() - began)
        return finished

    def _call(self, wish: Wish) -> None:
        generators = [torch.Generator().manual_seed(wish.seed + i) for i in range(wish.outputs)]
        count = "num_images_per_prompt" if self.race.frames is None else "num_videos_per_prompt"
        frames = {} if self.race.frames is None else {"num_frames": self.race.frames}
        self.pipe(
            wish.prompt, height=wish.height, width=wish.width, num_inference_steps=wish.steps, generator=generators,
            **{self.race.guided_by: wish.guidance, count: wish.outputs}, **frames, **self.race.fixed,
        )  # fmt: skip

    def close(self) -> None:
        del self.pipe


CONTESTANTS = {"omnimuse": Ours, "diffusers": Diffusers}
