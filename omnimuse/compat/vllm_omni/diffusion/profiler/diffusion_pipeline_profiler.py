"""`vllm_omni.diffusion.profiler.diffusion_pipeline_profiler`: how long parts of a pipeline took.

Nothing is put in the place of a pipeline's methods: the engine times its stages itself (`Result.timings`), and what a
pipeline wants to know besides it records by `timed`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omnimuse.compat.contract.names import no_name


class DiffusionPipelineProfilerMixin:
    """Seconds by name in `stage_durations`, where profiling was asked for."""

    enable_diffusion_pipeline_profiler = False
    stage_durations: dict[str, float]

    def setup_diffusion_pipeline_profiler(
        self, profiler_targets: Sequence[str] | None = None, enable_diffusion_pipeline_profiler: bool = False
    ) -> None:
        """Called in `__init__`; `profiler_targets` are names that `timed` then takes (None: any)."""
        self.enable_diffusion_pipeline_profiler = enable_diffusion_pipeline_profiler
        self.profiler_targets = None if profiler_targets is None else tuple(profiler_targets)
        self.stage_durations = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what the body takes to `stage_durations`, if it is profiled."""
        began = time.perf_counter()
        yield
        if self.enable_diffusion_pipeline_profiler and (self.profiler_targets is None or name in self.profiler_targets):
            self.stage_durations[name] = self.stage_durations.get(name, 0.0) + time.perf_counter() - began

    def clear_profiler_records(self) -> None:
        """Forget them."""
        self.stage_durations.clear()


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
