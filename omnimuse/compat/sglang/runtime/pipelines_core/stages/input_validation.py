"""`sglang.multimodal_gen.runtime.pipelines_core.stages.input_validation`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import RequestError

USUAL_SIZE = (1280, 720)
"""Width and height where neither a request nor the pipeline says any."""


class InputValidationStage(PipelineStage):
    """Settles the size; what a request may hold has been checked when it came in."""

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        config = server_args.pipeline_config
        if batch.height is None or batch.width is None:
            width, height = config.set_width_and_height(batch.width, batch.height, batch.pil_image)
            batch.width, batch.height = width or USUAL_SIZE[0], height or USUAL_SIZE[1]
        wanted = config.adjust_num_frames(batch.num_frames)
        if wanted != batch.num_frames:
            raise RequestError(f"num_frames={batch.num_frames} cannot be made; use {wanted}", "num_frames")
        return batch

    def verify_output(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        found = VerificationResult()
        found.add_check("height", batch.height, StageValidators.positive_int)
        found.add_check("width", batch.width, StageValidators.positive_int)
        return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
