"""What the parts of a request took, in the log: `--enable-diffusion-pipeline-profiler`, for whatever model it is.

Called where an engine hands a result out. A pipeline to vLLM-Omni's guide times its own parts, by its profiler
(`compat/vllm_omni/diffusion/profiler/`), in the same words.
"""

from __future__ import annotations

import logging

from omnimuse.core.output import Spent
from omnimuse.observe.labels import OTHER, by_label

log = logging.getLogger(__name__)


def log_parts(spent: Spent) -> None:
    """A line for every part that has a label; waiting is none."""
    for label, seconds in by_label(spent.timings, spent.labels).items():
        if label not in (OTHER, "queue"):
            log.info("[DiffusionPipelineProfiler] %s took %.3fs", label, seconds)
