"""A family with two lists of blocks: of two streams, then of one."""

from . import double_extractor
from .double_transformer import DoubleTransformer2DModel
from .pipeline_double import DoublePipeline, get_double_post_process_func

__all__ = ["DoublePipeline", "DoubleTransformer2DModel", "double_extractor", "get_double_post_process_func"]
