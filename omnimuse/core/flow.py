"""Flow matching as a checkpoint's scheduler configuration tells of it, and what a request may choose of it instead.

The door refuses by this table, `diffusion/choice.py` builds by it. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SCHEDULERS: Mapping[str, str] = MappingProxyType(
    {
        "euler": "FlowMatchEulerDiscreteScheduler",
        "heun": "FlowMatchHeunDiscreteScheduler",
        "unipc": "UniPCMultistepScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
    }
)
"""The schedulers that a request may choose for a model of flow matching, and the class of diffusers that each means."""

MAX_SHIFT = 100.0


def is_flow(config: Mapping[str, object]) -> bool:
    """Whether a scheduler with this configuration (its `_class_name` among it) moves along a velocity."""
    name = str(config.get("_class_name", ""))
    return name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def scheduler_named(name: object) -> str | None:
    """The word for the scheduler that `name` stands for, be it our word or the name of the class; None: no such one."""
    if not isinstance(name, str):
        return None
    plain = name.strip().casefold()
    return next((word for word, kind in SCHEDULERS.items() if plain in (word, kind.casefold())), None)
