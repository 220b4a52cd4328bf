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
from omnimuse import Ask, Config, DiffusionParams, Done, ModelConfig, Omni
from omnimuse.core.config import CompileConfig
from omnimuse.core.output import Event

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
        self.omni = Omni(str(folder), config=config)

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        began, order, finished = time.perf_counter(), list[str](), dict[str, float]()

        def listen(event: Event) -> None:
            if event.request_id not in order:
                order.append(event.request_id)
            if isinstance(event, Done):
                finished[event.request_id] = time.perf_counter() - began

        asked = [self.prompt(w) for w in wishes]
        results = self.omni.generate(asked, [self.params(w) for w in wishes], progress=listen)
        for result in results:
            if result.error is not None:
                raise result.error
        return [finished[request_id] for request_id in order]

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
        engine = self.omni._engine
        ids = [engine.submit(engine.make_request(Ask(long.prompt, self.params(long))))]
        while not any(state.position for state in engine.runner.states.values()):
            engine.tick()
        began = time.perf_counter()
        ids.append(engine.submit(engine.make_request(Ask(short.prompt, self.params(short)))))
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
        self.omni.close()


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
