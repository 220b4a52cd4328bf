"""`sglang.multimodal_gen` by another root: the names that SGLang Diffusion's guide has (docs/compat.md).

Change the import root of a pipeline or a script from `sglang.multimodal_gen` to `omnimuse.compat.sglang`, and it runs
on this engine. What is behind the names is in `compat/composed/`; what is heavy is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.contract.names import tell_of_modules

tell_of_modules()

_PLACES = {
    "DiffGenerator": "runtime.entrypoints.diffusion_generator",
    "PipelineConfig": "configs.pipeline_configs.base",
    "SamplingParams": "configs.sample.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise no_name(__name__, name)
