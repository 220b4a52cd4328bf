"""`sglang.multimodal_gen.registry`: which configurations a pipeline has.

The call is read from a plugin's source (`composed/discover.py`), so that no torch is needed to know it; when it is
made, it only checks that its arguments are what they must be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.pipeline_configs.base import PipelineConfig
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.core.errors import ConfigError


def register_configs(
    sampling_param_cls: Any,
    pipeline_config_cls: Any,
    hf_model_paths: Sequence[str] | None = None,
    model_detectors: Sequence[Callable[[str], bool]] | None = None,
) -> None:
    """Say which classes configure a pipeline: of a checkpoint by its id, or by a detector of ids and class names."""
    for given, base in ((sampling_param_cls, SamplingParams), (pipeline_config_cls, PipelineConfig)):
        if not (isinstance(given, type) and issubclass(given, base)):
            raise ConfigError(f"register_configs takes a subclass of {base.__name__}, got {given!r}")
    if not hf_model_paths and not model_detectors:
        raise ConfigError("register_configs needs hf_model_paths or model_detectors, to know a checkpoint by")


def _register_configs(
    sampling_param_cls: Any,
    pipeline_config_cls: Any,
    hf_model_paths: Sequence[str] | None = None,
    model_detectors: Sequence[Callable[[str], bool]] | None = None,
) -> None:
    """What the guide calls it."""
    register_configs(sampling_param_cls, pipeline_config_cls, hf_model_paths, model_detectors)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
