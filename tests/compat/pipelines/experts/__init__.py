"""A family of videos with two experts, of which each takes the steps on its side of a boundary."""

from .experts_transformer import ExpertsTransformer3DModel
from .pipeline_experts import ExpertsPipeline, get_experts_post_process_func

__all__ = ["ExpertsPipeline", "ExpertsTransformer3DModel", "get_experts_post_process_func"]
