"""The plugin's tables, as the guide has people write them: architecture -> (folder, file, class), and functions."""

from __future__ import annotations

_DIFFUSION_MODELS = {
    "DocumentedPipeline": ("medium", "pipeline_medium", "MediumPipeline"),
    "DocumentedStepPipeline": ("medium", "pipeline_medium", "MediumStepPipeline"),
    "DocumentedEditPipeline": ("medium", "pipeline_medium", "MediumEditPipeline"),
    "DocumentedEditStepPipeline": ("medium", "pipeline_medium", "MediumEditStepPipeline"),
    "DocumentedCustomPipeline": ("medium", "pipeline_medium", "CustomMediumPipeline"),
    "DocumentedCustomStepPipeline": ("medium", "pipeline_medium", "CustomMediumStepPipeline"),
    "PlannedPipeline": ("medium", "pipeline_medium", "PlannedMediumPipeline"),
    "BarePipeline": ("medium", "pipeline_medium", "BareMediumPipeline"),
    "TwoListsPipeline": ("double", "pipeline_double", "DoublePipeline"),
    "TwoListsStepPipeline": ("double", "pipeline_double", "DoubleStepPipeline"),
    "ExpertsVideoPipeline": ("experts", "pipeline_experts", "ExpertsPipeline"),
    "ExpertsVideoStepPipeline": ("experts", "pipeline_experts", "ExpertsStepPipeline"),
    "SoundAudioPipeline": ("sound", "pipeline_sound", "SoundPipeline"),
    "SoundAudioStepPipeline": ("sound", "pipeline_sound", "SoundStepPipeline"),
    "DocumentedEagerPipeline": ("medium", "pipeline_medium", "EagerMediumPipeline"),
}

_DIFFUSION_PRE_PROCESS_FUNCS = {
    "DocumentedEditPipeline": "get_medium_edit_pre_process_func",
    "DocumentedEditStepPipeline": "get_medium_edit_pre_process_func",
}

_DIFFUSION_POST_PROCESS_FUNCS = {
    arch: f"get_{folder}_post_process_func" for arch, (folder, _, _) in _DIFFUSION_MODELS.items()
}
