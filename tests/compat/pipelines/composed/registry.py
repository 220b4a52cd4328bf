"""The registration of configurations, as in the guide's last step."""

from __future__ import annotations

from omnimuse.compat.sglang.registry import _register_configs

from .small_configs import SmallPipelineConfig, SmallSamplingParams

_register_configs(
    sampling_param_cls=SmallSamplingParams,
    pipeline_config_cls=SmallPipelineConfig,
    model_detectors=[lambda hf_id: "composedsmall" in hf_id],
)
