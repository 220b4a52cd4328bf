"""`sglang.multimodal_gen.runtime.pipelines_core.stages.timestep_preparation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.distributed import get_local_torch_device
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ModelError


class TimestepPreparationStage(PipelineStage):
    """The schedule, by the output's own scheduler.

    Each of `prepare_extra_set_timesteps_kwargs` gives the name and the value of what else `set_timesteps` is told.
    """

    def __init__(
        self, scheduler: Any, prepare_extra_set_timesteps_kwargs: Sequence[Callable[..., tuple[str, Any]]] = ()
    ) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.prepare_extra_set_timesteps_kwargs = prepare_extra_set_timesteps_kwargs

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        takes = signature(self.scheduler.set_timesteps).parameters
        told = dict(callee(batch, server_args) for callee in self.prepare_extra_set_timesteps_kwargs)
        if batch.n_tokens is not None and "n_tokens" in takes:
            told["n_tokens"] = batch.n_tokens
        sigmas = server_args.pipeline_config.prepare_sigmas(batch.sigmas, batch.num_inference_steps)
        given = {"timesteps": batch.timesteps, "sigmas": sigmas}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) > 1:
            raise ModelError("both timesteps and sigmas are given; give one of them")
        for name in chosen:
            if name not in takes:
                raise ModelError(f"{type(self.scheduler).__name__}.set_timesteps takes no {name}; leave them out")
        device = get_local_torch_device()
        if chosen:
            self.scheduler.set_timesteps(device=device, **chosen, **told)
        else:
            self.scheduler.set_timesteps(batch.num_inference_steps, device=device, **told)
        batch.timesteps = self.scheduler.timesteps
        return batch

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("timesteps", batch.timesteps, StageValidators.with_dims(1))
        return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
