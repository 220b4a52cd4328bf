"""The two engines of the race behind one face: load a folder, draw wishes, say when each was finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checkpoints import Race
from omnimuse import Ask, Config, DiffusionParams, Done, ModelConfig
from omnimuse.core.config import CompileConfig
from omnimuse.core.output import Failed
from omnimuse.engine.local import present, start

NEGATIVE = "blurry"
TEXT_TOKENS = 128
"""The token limit of prompts. FLUX and Wan pad up to it in both engines."""


@dataclass(frozen=True)
class Wish:
    """One request of the race."""

    prompt: str
    steps: int
    guidance: float
    height: int
    width: int
    frames: int | None = None
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

    def __init__(self, race: Race, folder: Path, dtype: str, compiled: bool = False) -> None:
        self.name = "omnimuse compiled" if compiled else "omnimuse"
        self.race = race
        mode = CompileConfig("blocks" if compiled else "none")
        config = Config(ModelConfig(str(folder), dtype=dtype, device="cpu"), compile=mode)
        self.engine = start(config)  # on this thread, where operations are counted

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        began, finished = time.perf_counter(), dict[str, float]()
        ids = [self._submit(wish) for wish in wishes]
        while len(finished) < len(ids):
            for event in self.engine.tick():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    present(event.result, self.engine.door.limits)
                    finished[event.request_id] = time.perf_counter() - began
        return [finished[request_id] for request_id in ids]

    def prompt(self, wish: Wish) -> dict[str, str]:
        """The wish's prompt; guided wishes have a negative one."""
        guided = wish.guidance != self.race.off
        return {"prompt": wish.prompt} | ({"negative_prompt": NEGATIVE} if guided else {})

    def params(self, wish: Wish) -> DiffusionParams:
        """The wish in our words."""
        chosen: dict[str, Any] = {self.race.guided_by: wish.guidance, "num_frames": wish.frames}
        return DiffusionParams(
            num_inference_steps=wish.steps, height=wish.height, width=wish.width, seed=wish.seed,
            num_outputs_per_prompt=wish.outputs, max_sequence_length=TEXT_TOKENS, **chosen,
        )  # fmt: skip

    def overtake(self, long: Wish, short: Wish) -> float:
        """Seconds that `short` takes if it arrives after the first step of `long`, which is then given up."""
        engine = self.engine
        ids = [self._submit(long)]
        while not any(state.position for state in engine.runner.states.values()):
            engine.tick()
        began = time.perf_counter()
        ids.append(self._submit(short))
        while ids[1] in engine.scheduler.entries:
            engine.tick()
        seconds = time.perf_counter() - began
        engine.cancel(ids[0])
        engine.tick()
        return seconds

    def operations(self, wish: Wish) -> float:
        """Multiplications and additions that one request takes."""
        with FlopCounterMode(display=False) as counter:
            self.draw([wish])
        return float(counter.get_total_flops())

    def close(self) -> None:
        self.engine.close()

    def _submit(self, wish: Wish) -> str:
        return self.engine.submit(self.engine.make_request(Ask(self.prompt(wish), self.params(wish))))


class Diffusers:
    """diffusers: one wish after the other; outputs of one wish in one batch."""

    def __init__(self, race: Race, folder: Path, dtype: str, compiled: bool = False) -> None:
        import diffusers

        self.name = "diffusers compiled" if compiled else "diffusers"
        self.race = race
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = getattr(diffusers, race.reference)
            self.pipe = kind.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.pipe.set_progress_bar_config(disable=True)
        if compiled:
            self.pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        began = time.perf_counter()
        finished = []
        for wish in wishes:
            self._call(wish)
            finished.append(time.perf_counter() - began)
        return finished

    def _call(self, wish: Wish) -> None:
        generators = [torch.Generator().manual_seed(wish.seed + i) for i in range(wish.outputs)]
        count = "num_images_per_prompt" if wish.frames is None else "num_videos_per_prompt"
        frames = {} if wish.frames is None else {"num_frames": wish.frames}
        negative = {} if wish.guidance == self.race.off else {"negative_prompt": NEGATIVE}
        self.pipe(
            wish.prompt, height=wish.height, width=wish.width, num_inference_steps=wish.steps, generator=generators,
            max_sequence_length=TEXT_TOKENS, **{self.race.guided_by: wish.guidance, count: wish.outputs}, **frames,
            **negative,
        )  # fmt: skip

    def close(self) -> None:
        del self.pipe


CONTESTANTS: dict[str, Any] = {"omnimuse": Ours, "diffusers": Diffusers}
