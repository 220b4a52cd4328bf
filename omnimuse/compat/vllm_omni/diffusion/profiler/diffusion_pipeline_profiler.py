"""`vllm_omni.diffusion.profiler.diffusion_pipeline_profiler`: how long parts of a pipeline took.

The contract has a pipeline that inherits this put a stop-watch around methods of its own parts, where profiling was
asked for; nothing of ours is touched. What it measures goes to the log, and with the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from operator import attrgetter
from typing import Any, ClassVar

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import inside
from omnimuse.compat.vllm_omni.platforms import current_omni_platform
from omnimuse.core.errors import ModelError

logger = logging.getLogger(__name__)


class DiffusionPipelineProfilerMixin:
    """Seconds by name in `stage_durations`, where profiling was asked for."""

    _PROFILER_TARGETS: ClassVar[Sequence[str]] = (
        *("vae.encode", "vae.decode", "diffuse", "text_encoder.forward", "tokenizer.forward"),
    )
    enable_diffusion_pipeline_profiler = False

    def setup_diffusion_pipeline_profiler(
        self, profiler_targets: Sequence[str] | None = None, enable_diffusion_pipeline_profiler: bool = False
    ) -> None:
        """Called at the end of `__init__`: from now on the methods `profiler_targets` are timed, if it is `enable`d.

        None: those of `_PROFILER_TARGETS` that there are. ModelError for one that was named and is not there.
        """
        self.enable_diffusion_pipeline_profiler = enable_diffusion_pipeline_profiler
        self._stage_durations: dict[str, float] = {}
        if not enable_diffusion_pipeline_profiler:
            return
        for target in profiler_targets or self._PROFILER_TARGETS:
            path, _, method = target.rpartition(".")
            try:
                owner = attrgetter(path)(self) if path else self
                found = attrgetter(method)(owner)
            except AttributeError as problem:
                if profiler_targets is None:
                    continue
                kind = type(self).__name__
                raise ModelError(f"profiler target {target!r} is no method of {kind}; correct its name") from problem
            setattr(owner, method, self._timing(target, found))

    @property
    def stage_durations(self) -> dict[str, float]:
        """A copy of what was measured since the last `clear_profiler_records`."""
        return dict(self._stage_durations)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what the body takes to `stage_durations`, if it is profiled."""
        if not self.enable_diffusion_pipeline_profiler:
            yield
            return
        began = _now()
        yield
        spent = _now() - began
        self._stage_durations[name] = self._stage_durations.get(name, 0.0) + spent
        logger.info("[DiffusionPipelineProfiler] %s took %.3fs", name, spent)

    def clear_profiler_records(self) -> None:
        """Forget them."""
        self._stage_durations = {}

    def _timing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return method(*args, **kwargs)

        return timed


def _now() -> float:
    """Seconds, when the device has done what it was given."""
    if inside():
        current_omni_platform.synchronize()
    return time.perf_counter()


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
