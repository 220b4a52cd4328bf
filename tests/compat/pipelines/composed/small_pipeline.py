"""The pipeline: stock stages in order, and what the schedule is told of the size."""

from __future__ import annotations

from omnimuse.compat.sglang.runtime.pipelines_core import LoRAPipeline
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages import (
    ConditioningStage,
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from omnimuse.compat.sglang.runtime.server_args import ServerArgs


def prepare_mu(batch: Req, server_args: ServerArgs):
    cell = server_args.pipeline_config.vae_config.arch_config.vae_scale_factor * 2
    tokens = (batch.height // cell) * (batch.width // cell)
    slope = (1.15 - 0.5) / (4096 - 256)
    return "mu", tokens * slope + 0.5 - slope * 256


class SmallPipeline(LoRAPipeline, ComposedPipelineBase):
    pipeline_name = "ComposedSmallPipeline"

    _required_config_modules = [
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "vae",
        "transformer",
        "scheduler",
    ]

    def create_pipeline_stages(self, server_args: ServerArgs):
        """Set up pipeline stages sequentially."""
        scheduler, transformer = self.get_module("scheduler"), self.get_module("transformer")
        self.add_stage(stage_name="input_validation_stage", stage=InputValidationStage())
        self.add_stage(
            stage_name="prompt_encoding_stage_primary",
            stage=TextEncodingStage(
                text_encoders=[self.get_module("text_encoder"), self.get_module("text_encoder_2")],
                tokenizers=[self.get_module("tokenizer"), self.get_module("tokenizer_2")],
            ),
        )
        self.add_stage(stage_name="conditioning_stage", stage=ConditioningStage())
        self.add_stage(
            stage_name="timestep_preparation_stage",
            stage=TimestepPreparationStage(scheduler=scheduler, prepare_extra_set_timesteps_kwargs=[prepare_mu]),
        )
        self.add_stage(
            stage_name="latent_preparation_stage",
            stage=LatentPreparationStage(scheduler=scheduler, transformer=transformer),
        )
        self.add_stage(stage_name="denoising_stage", stage=DenoisingStage(transformer=transformer, scheduler=scheduler))
        self.add_stage(stage_name="decoding_stage", stage=DecodingStage(vae=self.get_module("vae")))


EntryClass = SmallPipeline
