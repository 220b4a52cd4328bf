"""Which solver moves the latents of a checkpoint: one of ours where it gives what the named scheduler gives.

Called by the denoising loop. Everything else is wrapped (`wrapped.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.diffusion import cosine_dpm
from omnimuse.diffusion.cosine_dpm import CosineDpm
from omnimuse.diffusion.schedules import FlowSchedule, unsupported
from omnimuse.diffusion.solvers import FlowEuler, Solver, Spacing
from omnimuse.diffusion.unipc import FlowUniPC, uncovered
from omnimuse.diffusion.wrapped import DiffusersSolver

FLOW_EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
COSINE_DPM = "CosineDPMSolverMultistepScheduler"


def solver_for(class_name: str, config: Mapping[str, Any], spacing: Spacing = "linear") -> tuple[Solver, str]:
    """The solver for a checkpoint's scheduler, and the reason in words. ModelError: an unknown class."""
    if class_name == FLOW_EULER:
        option = unsupported(config) or ("levels that the scheduler chooses" if spacing == "scheduler" else None)
        if option is None:
            own = FlowEuler(FlowSchedule.from_config(config), double=spacing == "linear64")
            return own, f"our flow Euler, equal to the checkpoint's {class_name}"
        wrapped = DiffusersSolver(class_name, config, spacing)
        return wrapped, f"diffusers' {class_name}, because our flow Euler does not cover {option}"
    if class_name == COSINE_DPM and cosine_dpm.uncovered(config) is None:
        return CosineDpm.from_config(config), f"our stochastic DPM-Solver++, equal to the checkpoint's {class_name}"
    wrapped = DiffusersSolver(class_name, config, spacing)
    if class_name == COSINE_DPM:
        option = cosine_dpm.uncovered(config)
        return wrapped, f"diffusers' {class_name}, because our solver does not cover {option}"
    if class_name != UNIPC:
        return wrapped, f"diffusers' {class_name}, which the checkpoint names"
    if (option := uncovered(config)) is not None:
        return wrapped, f"diffusers' {class_name}, because our UniPC does not cover {option}"
    return FlowUniPC.over(wrapped), f"our UniPC, equal to the checkpoint's {class_name}"
