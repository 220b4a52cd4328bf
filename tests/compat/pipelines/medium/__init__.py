"""A family of two streams and two text encoders."""

from . import medium_extractor
from .medium_transformer import MediumTransformer2DModel
from .pipeline_medium import MediumPipeline, get_medium_post_process_func

__all__ = ["MediumPipeline", "MediumTransformer2DModel", "get_medium_post_process_func", "medium_extractor"]
