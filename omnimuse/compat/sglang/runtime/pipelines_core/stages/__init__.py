"""`sglang.multimodal_gen.runtime.pipelines_core.stages`: the stages that pipelines are composed of."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.conditioning import ConditioningStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.decoding import DecodingStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.denoising import DenoisingStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.image_encoding import (
    ImageEncodingStage,
    ImageVAEEncodingStage,
)
from omnimuse.compat.sglang.runtime.pipelines_core.stages.input_validation import InputValidationStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.latent_preparation import LatentPreparationStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.text_encoding import TextEncodingStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.timestep_preparation import TimestepPreparationStage

__all__ = [
    "ConditioningStage",
    "DecodingStage",
    "DenoisingStage",
    "ImageEncodingStage",
    "ImageVAEEncodingStage",
    "InputValidationStage",
    "LatentPreparationStage",
    "PipelineStage",
    "TextEncodingStage",
    "TimestepPreparationStage",
]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
