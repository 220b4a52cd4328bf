"""`sglang.multimodal_gen.runtime.pipelines_core.stages.conditioning`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs


class ConditioningStage(PipelineStage):
    """A place between encoders and the loop: it checks that both prompts are there. Subclasses join or change them."""

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        return batch

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("prompt_embeds", batch.prompt_embeds, StageValidators.list_not_empty)
        if batch.do_classifier_free_guidance:
            found.add_check("negative_prompt_embeds", batch.negative_prompt_embeds, StageValidators.list_not_empty)
        return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
