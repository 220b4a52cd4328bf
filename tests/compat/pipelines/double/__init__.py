"""A family with two lists of blocks: of two streams, then of one."""

from .double_transformer import DoubleTransformer2DModel
from .pipeline_double import DoublePipeline, get_double_post_process_func

__all__ = ["DoublePipeline", "DoubleTransformer2DModel", "get_double_post_process_func"]
