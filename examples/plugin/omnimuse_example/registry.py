"""The pipelines of this package, as the guide has people write them: architecture -> (folder, file, class)."""

_DIFFUSION_MODELS = {"ExampleDrawingPipeline": ("drawing", "pipeline_drawing", "DrawingPipeline")}

_DIFFUSION_POST_PROCESS_FUNCS = {"ExampleDrawingPipeline": "get_drawing_post_process_func"}
