"""A stand-in for `omnimuse.Omni`: plays events and gives grey pictures, with no torch and no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from omnimuse.core.config import Config
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.output import Done, Event, Failed, Part, Preview, Progress, Result
from omnimuse.core.params import DiffusionParams

STEPS = 4
SIDE = 8
BLOCKS = {"net.blocks.0": (0.25, 0.5), "net.blocks.1": (0.25, 0.25)}
HELD = {"net.blocks.0": (2**20, 3 * 2**20), "net.blocks.1": (2**20, 2**20)}


class FakeOmni:
    """Draws every prompt in turn; a prompt in `failures` ends with its error.

    `interrupt` is raised in the middle of the request that comes `after` so many. Every output has `layers` pictures.
    """

    def __init__(
        self,
        config: Config,
        failures: Mapping[str, OmnimuseError] | None = None,
        interrupt: BaseException | None = None,
        after: int = 0,
        backwards: bool = False,
        layers: int = 1,
        watch: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.config = config
        self.failures = failures or {}
        self.interrupt = interrupt
        self.after = after
        self.backwards = backwards
        self.layers = layers
        self.drawn: list[tuple[str, int | None]] = []
        self.watch = watch
        self.deadline: float | str | None = None
        self.times_blocks = False
        self.closed = False

    @property
    def place(self) -> dict[str, str]:
        return {"dtype": "float32", "device": "cpu"}

    def stream(
        self,
        prompts: Sequence[Mapping[str, Any]],
        params: Sequence[DiffusionParams],
        *,
        listen: Callable[[Event], None],
        previews: int = 0,
        deadline: float | str | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """As `Omni.stream`; with `backwards`, the last prompt is done first."""
        self.deadline = deadline
        order = list(enumerate(zip(prompts, params, strict=True)))
        for index, (prompt, chosen) in reversed(order) if self.backwards else order:
            for event in self._events(f"request-{index}", prompt["prompt"], chosen, previews):
                listen(event)
                self.watch(event)
                if isinstance(event, Done):
                    self.drawn.append((prompt["prompt"], chosen.seed))
                    yield index, event.result
                elif isinstance(event, Failed):
                    yield index, Result(event.request_id, prompt["prompt"], chosen, error=event.error)

    @contextmanager
    def recording(self, path: Path) -> Iterator[None]:
        """As `Omni.recording`."""
        before = len(self.drawn)
        yield
        path.write_text(f"{len(self.drawn) - before} drawn")

    def _events(self, request: str, prompt: str, params: DiffusionParams, previews: int) -> list[Event]:
        count = params.num_outputs_per_prompt or 1
        events: list[Event] = [Progress(request, output, "encode", 1, 1) for output in range(count)]
        if prompt in self.failures:
            return [*events, Failed(request, self.failures[prompt])]
        if self.interrupt is not None and len(self.drawn) >= self.after:
            raise self.interrupt
        for step in range(1, STEPS + 1):
            for output in range(count):
                events.append(Progress(request, output, "denoise", step, STEPS))
                if previews and step < STEPS:
                    events.append(Preview(request, output, step, np.full((2, 2, 3), step, np.uint8)))
        return [*events, Done(request, self._result(request, prompt, params, count))]

    def _result(self, request: str, prompt: str, params: DiffusionParams, count: int) -> Result:
        seed = 100 if params.seed is None else params.seed
        return Result(
            request,
            prompt,
            replace(params, seed=seed, num_inference_steps=STEPS, height=SIDE, width=SIDE, output_type="pil"),
            parts=tuple(
                tuple(Part("image", Image.new("RGB", (SIDE, SIDE), (i + n, i, i))) for n in range(self.layers))
                for i in range(count)
            ),
            seeds=[seed + i for i in range(count)],
            timings={"queue": 0.0001, "encode": 0.02, "denoise": 1.25},
            blocks=BLOCKS if self.times_blocks else {},
            blocks_held=HELD if self.times_blocks else {},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
