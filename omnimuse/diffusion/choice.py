"""Which solver moves the latents of a checkpoint: one of ours where it gives what the named scheduler gives.

Called by the denoising loop. Everything else is wrapped (`wrapped.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.params import ScheduleParams
from omnimuse.core.plugins import SOLVERS, brought, loaded
from omnimuse.diffusion import cosine_dpm
from omnimuse.diffusion.cosine_dpm import CosineDpm
from omnimuse.diffusion.schedules import MOVING, FlowSchedule, Mu, Spacing, unsupported
from omnimuse.diffusion.solvers import FlowEuler, Solver
from omnimuse.diffusion.unipc import FlowUniPC, uncovered
from omnimuse.diffusion.wrapped import DiffusersSolver

COSINE_DPM = "CosineDPMSolverMultistepScheduler"
FLOW_EULER, UNIPC = SCHEDULERS["euler"], SCHEDULERS["unipc"]
OURS = (FLOW_EULER, COSINE_DPM, UNIPC)
_DYNAMIC = (*MOVING, "use_dynamic_shifting", "time_shift_type", "shift_terminal")


def chosen_config(config: Mapping[str, Any], chosen: ScheduleParams) -> dict[str, Any]:
    """The configuration of the scheduler that a request asks for, of a checkpoint that has `config`.

    A shift that is asked for stands in place of one that follows the size. A scheduler of another class gets what the
    checkpoint says of its levels, and its own defaults besides.
    """
    found = dict(config)
    if chosen.scheduler is not None and (name := SCHEDULERS[chosen.scheduler]) != config["_class_name"]:
        found = {"_class_name": name, **_levels(config, name)}
    if chosen.flow_shift is not None:
        found |= {_shift_of(found["_class_name"]): chosen.flow_shift, "use_dynamic_shifting": False}
    return found


def _levels(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """What a flow-matching `config` says of its noise levels, as a scheduler of the class `class_name` is told it."""
    shift = config.get(_shift_of(str(config["_class_name"])))
    told = {"num_train_timesteps": config.get("num_train_timesteps"), _shift_of(class_name): shift}
    if class_name != SCHEDULERS["heun"]:  # it knows a shift alone
        told |= {name: config.get(name) for name in _DYNAMIC}
    if not class_name.startswith("FlowMatch"):
        told |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return {name: value for name, value in told.items() if value is not None}


def _shift_of(class_name: str) -> str:
    """What a scheduler of that class calls its shift."""
    return "shift" if class_name.startswith("FlowMatch") else "flow_shift"


def solver_for(
    class_name: str, config: Mapping[str, Any], spacing: Spacing = "linear", mu: Mu | None = None
) -> tuple[Solver, str]:
    """The solver for a checkpoint's scheduler, and the reason in words. ModelError: an unknown class.

    One that we have no solver for may be a package's (`omnimuse.solvers`).

    For `mu` see `FlowSchedule.rule`.
    """
    if class_name not in OURS and (point := brought(SOLVERS).get(class_name)) is not None:
        own = loaded(point)(config, spacing, mu)
        return own, f"that of {point.value}, a package that stands for the checkpoint's {class_name}"
    if class_name == FLOW_EULER:
        if (option := unsupported(config)) is None:
            own = FlowEuler(FlowSchedule.from_config(config, mu), spacing)
            return own, f"our flow Euler, equal to the checkpoint's {class_name}"
        wrapped = DiffusersSolver(class_name, config, spacing, mu)
        return wrapped, f"diffusers' {class_name}, because our flow Euler does not cover {option}"
    if class_name == COSINE_DPM and cosine_dpm.uncovered(config) is None:
        return CosineDpm.from_config(config), f"our stochastic DPM-Solver++, equal to the checkpoint's {class_name}"
    wrapped = DiffusersSolver(class_name, config, spacing, mu)
    if class_name == COSINE_DPM:
        option = cosine_dpm.uncovered(config)
        return wrapped, f"diffusers' {class_name}, because our solver does not cover {option}"
    if class_name != UNIPC:
        return wrapped, f"diffusers' {class_name}, which the checkpoint names"
    if (option := uncovered(config)) is not None:
        return wrapped, f"diffusers' {class_name}, because our UniPC does not cover {option}"
    return FlowUniPC.over(wrapped), f"our UniPC, equal to the checkpoint's {class_name}"
