"""The plugin's tables, as the guide has people write them: architecture -> (folder, file, class), and functions."""

from __future__ import annotations

_DIFFUSION_MODELS = {
    "DocumentedPipeline": ("medium", "pipeline_medium", "MediumPipeline"),
    "DocumentedStepPipeline": ("medium", "pipeline_medium", "MediumStepPipeline"),
    "DocumentedEditPipeline": ("medium", "pipeline_medium", "MediumEditPipeline"),
    "DocumentedCustomPipeline": ("medium", "pipeline_medium", "CustomMediumPipeline"),
    "DocumentedEagerPipeline": ("medium", "pipeline_medium", "EagerMediumPipeline"),
}

_DIFFUSION_PRE_PROCESS_FUNCS = {
    "DocumentedEditPipeline": "get_medium_edit_pre_process_func",
}

_DIFFUSION_POST_PROCESS_FUNCS = dict.fromkeys(_DIFFUSION_MODELS, "get_medium_post_process_func")
