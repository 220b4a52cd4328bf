"""The two engines on an accelerator, with networks whose weights are drawn there: seconds of a step, of decoding.

For `benchmarks/gpu.py`. A step is timed on the host between two moments at which the device has nothing left to do.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import Model
from omnimuse import Ask, Config, DiffusionParams, Done, ModelConfig
from omnimuse.core.config import CacheConfig, CompileConfig, KernelConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.output import Failed, Progress, Result
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import from_config, kept_float32, library_class
from omnimuse.loader.weights import draw

PROMPT = "a red circle above the blue square on white"
NEGATIVE = "blurry"
WARM = 2
"""Steps that are not counted."""
VARIANTS: dict[str, dict[str, Any]] = {
    "layers": {"offload": OffloadConfig("layers")},
    "teacache": {"cache": CacheConfig("teacache", 0.2)},
    "fp8": {"quantize": QuantConfig({"": "fp8"})},
}
"""Modes of ours that have no counterpart: topics of the configuration."""


@dataclass(frozen=True)
class Case:
    """So many requests in flight for pictures of `side` by `side`."""

    side: int
    requests: int
    guided: bool
    steps: int

    def __str__(self) -> str:
        return f"{self.side} x {self.requests}{' guided' if self.guided else ''}"


class Ours:
    """omnimuse: all requests in flight together."""

    name = "omnimuse"

    modes = ("eager", "plain", "compiled", *VARIANTS)

    def __init__(self, model: Model, path: Path, device: torch.device, mode: str, **topics: Any) -> None:
        self.model, self.device = model, device
        place = ModelConfig(str(path), dtype="bfloat16", device=str(device), load="dummy")
        chosen = {
            "schedule": ScheduleConfig(company="always"),
            "compile": CompileConfig("blocks" if mode == "compiled" else "none"),
            "kernels": KernelConfig("plain" if mode == "plain" else "auto"),
        }
        self.engine = start(Config(place, **{**chosen, **VARIANTS.get(mode, {}), **topics}))

    def steps(self, case: Case, watch: Watch | None = None) -> float:
        """Seconds of a step of all requests together. Who is to `watch` sees the steps that are counted alone."""
        engine, taken, counted, moments = self.engine, 0, 0, list[float]()
        self._submit(case, "latent")
        while not engine.idle:
            for event in engine.tick():
                if isinstance(event, Failed):
                    raise event.error
                taken += isinstance(event, Progress) and event.stage == "denoise"
            # Requests may take turns, so all their steps are counted together.
            if len(moments) < 2 and taken >= (WARM, case.steps)[len(moments)] * case.requests:
                sync(self.device)
                if watch is not None:
                    (watch.stop if moments else watch.start)()
                moments.append(time.perf_counter())
                counted = taken - counted
        began, last = moments
        return (last - began) / counted * case.requests

    def decode(self, case: Case) -> float:
        """Seconds that one output takes from latents to pixels on the device."""
        [result] = self._drawn(replace(case, requests=1))
        return result.timings["decode"]

    def whole(self, case: Case) -> float:
        """Seconds that all requests take together, from their prompts to their pixels."""
        sync(self.device)
        began = time.perf_counter()
        self._drawn(case)
        sync(self.device)
        return time.perf_counter() - began

    def _submit(self, case: Case, output: str) -> None:
        for seed in range(case.requests):
            self.engine.submit(self.engine.make_request(self._ask(case, seed, output)))

    def _drawn(self, case: Case) -> list[Result]:
        """What becomes of all requests, to the end."""
        found = list[Result]()
        self._submit(case, "pt")
        while not self.engine.idle:
            for event in self.engine.tick():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    found.append(event.result)
        return found

    def operations(self, case: Case) -> float:
        """Multiplications and additions of one step of all requests together."""
        counts = []
        for steps in (WARM + 1, WARM + 2):
            with FlopCounterMode(display=False) as counter:
                self.steps(Case(case.side, 1, case.guided, steps))
            counts.append(counter.get_total_flops())
        return float(counts[1] - counts[0]) * case.requests

    def close(self) -> None:
        self.engine.close()
        del self.engine
        clear()

    def _ask(self, case: Case, seed: int, output: Any) -> Ask:
        scale = self.model.guidance if case.guided else self.model.off
        chosen: dict[str, Any] = {self.model.guided_by: scale, "num_frames": self.model.frames}
        params = DiffusionParams(
            num_inference_steps=case.steps, height=case.side, width=case.side, seed=seed, output_type=output, **chosen
        )
        return Ask({"prompt": PROMPT} | ({"negative_prompt": NEGATIVE} if case.guided else {}), params)


class Theirs:
    """diffusers: all requests as one batch."""

    name = "diffusers"

    modes = ("eager", "compiled")

    def __init__(self, model: Model, path: Path, device: torch.device, mode: str) -> None:
        import diffusers

        self.model, self.device = model, device
        checkpoint, parts = Checkpoint(path), dict[str, Any]()
        for name, (library, cls) in checkpoint.components.items():
            if not checkpoint.has_weights(name):
                parts[name] = getattr(import_module(library), cls).from_pretrained(path / name)
                continue
            parts[name] = filled(checkpoint, name, device)
        self.pipe: Any = getattr(diffusers, model.reference)(**parts, **_settings(path))
        self.pipe.set_progress_bar_config(disable=True)
        if mode == "compiled":
            self.pipe.transformer.compile_repeated_blocks(fullgraph=True)

    def steps(self, case: Case) -> float:
        """Seconds of a step of all requests together."""
        times: list[float] = []

        def note(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            if step + 1 in (WARM, case.steps):
                sync(self.device)
                times.append(time.perf_counter())
            return {}

        self._call(case, "latent", callback_on_step_end=note)
        return (times[1] - times[0]) / (case.steps - WARM)

    def decode(self, case: Case) -> float:
        """Seconds that decoding takes: of the whole with it less those without."""
        seconds = []
        for output in ("latent", "pt"):
            sync(self.device)
            began = time.perf_counter()
            self._call(case, output)
            sync(self.device)
            seconds.append(time.perf_counter() - began)
        return seconds[1] - seconds[0]

    def whole(self, case: Case) -> float:
        """Seconds that all requests take together, from their prompts to their pixels."""
        sync(self.device)
        began = time.perf_counter()
        self._call(case, "pt")
        sync(self.device)
        return time.perf_counter() - began

    def close(self) -> None:
        del self.pipe
        clear()

    def _call(self, case: Case, output: str, **besides: Any) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(case.requests)]
        count = "num_videos_per_prompt" if self.model.frames else "num_images_per_prompt"
        frames = {"num_frames": self.model.frames} if self.model.frames else {}
        scale = self.model.guidance if case.guided else self.model.off
        negative = {"negative_prompt": NEGATIVE} if case.guided else {}
        self.pipe(
            PROMPT, height=case.side, width=case.side, num_inference_steps=case.steps, generator=generators,
            output_type=output, **{self.model.guided_by: scale, count: case.requests}, **frames, **negative, **besides,
        )  # fmt: skip


def filled(checkpoint: Checkpoint, name: str, device: torch.device) -> torch.nn.Module:
    """A network of a library in bfloat16, built on the device, with numbers drawn as those of ours are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            module = from_config(library_class(checkpoint, name), checkpoint, name).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    kept = kept_float32(checkpoint, name, torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    for path, tensor in module.named_parameters():
        owner, _, key = path.rpartition(".")
        if any(part in path.split(".") for part in kept):
            tensor.data = tensor.data.float()
        tensor.copy_(draw(tuple(tensor.shape), key, type(module.get_submodule(owner)).__name__, generator))
    return module


def _settings(path: Path) -> dict[str, Any]:
    """What model_index.json says besides components."""
    index = json.loads((path / "model_index.json").read_text())
    return {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}


def clear() -> None:
    """Give all memory of the device back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sync(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Watch(Protocol):
    """Who is told when the steps that are counted begin and end."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def busy_share(work: Callable[[Watch], object]) -> float:
    """The share of the time between the first and the last kernel that it sees in which the device computed."""
    from torch.profiler import ProfilerActivity, profile

    seen = profile(activities=[ProfilerActivity.CUDA])
    work(seen)
    assert seen.profiler is not None
    return share(
        (event.start_ns(), event.end_ns())
        for event in seen.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    )


def share(spans: Iterable[tuple[int, int]]) -> float:
    """Of the time from the first beginning to the last end, in which at least one of the spans is."""
    ordered = sorted(spans)
    busy, end = 0.0, ordered[0][0]
    for first, stop in ordered:
        busy += max(0.0, stop - max(first, end))
        end = max(end, stop)
    return busy / (end - ordered[0][0])


def timed(device: torch.device, work: Callable[[], object], rounds: int = 10) -> float:
    """Seconds of one `work`, of many after some that warm up."""
    for _ in range(3):
        work()
    sync(device)
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    sync(device)
    return (time.perf_counter() - began) / rounds


def product_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a product of two bfloat16 matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / timed(device, lambda: a @ b) / 1e12


def memory_rate(device: torch.device) -> float:
    """TB/s of a large copy within the device, bytes read and written."""
    numbers = torch.randn(2**30, device=device)
    return 2 * numbers.nbytes / timed(device, numbers.clone) / 1e12
