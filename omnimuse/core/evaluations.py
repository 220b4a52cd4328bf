"""How often a scheduler has its network evaluated in so many steps, as a checkpoint's configuration tells.

The door counts by it, so that admission, fairness and estimates know before any torch is loaded; `diffusion/` has the
plans themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.params import ScheduleParams

TWICE = frozenset(
    {
        "DPMSolverSDEScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    }
)
"""Schedulers of diffusers that look at both ends of every step but the last."""


def evaluations_beyond(config: Mapping[str, object], chosen: ScheduleParams, steps: int) -> int:
    """How many evaluations there are beyond one a step in the last `steps` of a schedule, of which a request may have
    `chosen` the scheduler in place of the one with this `config`.
    """
    name = config.get("_class_name") if chosen.scheduler is None else SCHEDULERS[chosen.scheduler]
    if name in TWICE:
        return steps - 1
    if name == "PNDMScheduler":  # it starts with three steps of four evaluations, or with a second one of one step
        return 1 if config.get("skip_prk_steps") else 9
    return 0
