"""`sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base`: a pipeline as a list of stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.sglang.runtime.pipelines_core.stages import (
    DecodingStage,
    DenoisingStage,
    ImageEncodingStage,
    ImageVAEEncodingStage,
    LatentPreparationStage,
    PipelineStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ModelError


class ComposedPipelineBase(ABC):
    """A pipeline that `create_pipeline_stages` composes. The engine reads the modules, and runs the stages itself.

    `pipeline_name` is what a checkpoint calls it; `_required_config_modules` are the components that are read.
    """

    pipeline_name: ClassVar[str]
    is_video_pipeline: ClassVar[bool] = False
    _required_config_modules: Sequence[str] = ()
    _extra_config_module_map: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model_path: str, server_args: ServerArgs, loaded_modules: Mapping[str, Any]) -> None:
        self.model_path = model_path
        self.server_args = server_args
        self.modules = dict(loaded_modules)
        self._stages: dict[str, PipelineStage] = {}
        self.initialize_pipeline(server_args)
        self.create_pipeline_stages(server_args)

    @property
    def required_config_modules(self) -> list[str]:
        """The components that are read."""
        return list(self._required_config_modules)

    @property
    def stages(self) -> list[PipelineStage]:
        """The stages, in order."""
        return list(self._stages.values())

    @property
    def named_stages(self) -> Mapping[str, PipelineStage]:
        """The same by name."""
        return dict(self._stages)

    @abstractmethod
    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Add the stages, in order."""

    def initialize_pipeline(self, server_args: ServerArgs) -> None:
        """Change modules before stages are made of them, such as another scheduler."""
        return

    def get_module(self, module_name: str, default_value: Any = None) -> Any:
        """A component, or `default_value` where there is none of that name."""
        return self.modules.get(module_name, default_value)

    def add_module(self, module_name: str, module: Any) -> None:
        """Have another component of that name."""
        self.modules[module_name] = module

    def add_stage(self, stage: PipelineStage, stage_name: str | None = None) -> ComposedPipelineBase:
        """Have one more stage. Its name, left out, is that of its class; ModelError where another one has it."""
        name = stage_name or type(stage).__name__
        if not isinstance(stage, PipelineStage):
            raise ModelError(f"stage {name!r} is a {type(stage).__name__}; make it a PipelineStage")
        if name in self._stages:
            raise ModelError(f"two stages are called {name!r}; give add_stage a stage_name")
        self._stages[name] = stage
        return self

    def add_stages(self, stages: Sequence[Any]) -> ComposedPipelineBase:
        """Have several more: stages, or stages with their names."""
        for each in stages:
            self.add_stage(*each) if isinstance(each, tuple) else self.add_stage(each)
        return self

    # -- the usual ones ------------------------------------------------------------------------------------------------

    def add_standard_text_encoding_stage(
        self, text_encoder_key: str = "text_encoder", tokenizer_key: str = "tokenizer"
    ) -> ComposedPipelineBase:
        """One text encoder."""
        encoders, tokenizers = [self.get_module(text_encoder_key)], [self.get_module(tokenizer_key)]
        return self.add_stage(TextEncodingStage(encoders, tokenizers), f"prompt_encoding_stage_{text_encoder_key}")

    def add_standard_image_encoding_stage(self) -> ComposedPipelineBase:
        """An encoder of pictures with its processor."""
        processor = self.get_module("image_processor") or self.get_module("processor")
        return self.add_stage(ImageEncodingStage(processor, image_encoder=self.get_module("image_encoder")))

    def add_standard_image_vae_encoding_stage(self) -> ComposedPipelineBase:
        """Pictures as latents."""
        return self.add_stage(ImageVAEEncodingStage(vae=self.get_module("vae")))

    def add_standard_timestep_preparation_stage(
        self, prepare_extra_kwargs: Sequence[Callable[..., tuple[str, Any]]] = ()
    ) -> ComposedPipelineBase:
        """The schedule of the checkpoint's scheduler."""
        return self.add_stage(TimestepPreparationStage(self.get_module("scheduler"), prepare_extra_kwargs))

    def add_standard_latent_preparation_stage(self) -> ComposedPipelineBase:
        """The noise to begin with."""
        return self.add_stage(LatentPreparationStage(self.get_module("scheduler"), self.get_module("transformer")))

    def add_standard_denoising_stage(self) -> ComposedPipelineBase:
        """The loop over the checkpoint's network, or its two."""
        second = self.get_module("transformer_2")
        scheduler, vae = self.get_module("scheduler"), self.get_module("vae")
        return self.add_stage(DenoisingStage(self.get_module("transformer"), scheduler, self, second, vae))

    def add_standard_decoding_stage(self) -> ComposedPipelineBase:
        """Latents as pixels."""
        return self.add_stage(DecodingStage(self.get_module("vae"), self))

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
