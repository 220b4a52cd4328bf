"""The plugin's tables, as the guide has people write them: architecture -> (folder, file, class), and functions."""

from __future__ import annotations

_DIFFUSION_MODELS = {
    "DocumentedPipeline": ("medium", "pipeline_medium", "MediumPipeline"),
    "DocumentedStepPipeline": ("medium", "pipeline_medium", "MediumStepPipeline"),
}

_DIFFUSION_POST_PROCESS_FUNCS = {
    "DocumentedPipeline": "get_medium_post_process_func",
    "DocumentedStepPipeline": "get_medium_post_process_func",
}
