"""omnimuse: one small engine that turns prompts into pictures, video, sound and speech.

`from omnimuse import Omni, DiffusionParams` is the Python face. Importing this package does not import torch.
"""

from __future__ import annotations

from omnimuse.api import AsyncOmni, Omni, explain
from omnimuse.core.config import Config, ModelConfig, ParallelConfig, WriterConfig
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.output import Chunk, Done, Failed, Part, Preview, Progress, Result
from omnimuse.core.params import DiffusionParams, GenerationParams
from omnimuse.core.request import Ask

__version__ = "0.1.0"

__all__ = [
    "Ask", "AsyncOmni", "Chunk", "Config", "DiffusionParams", "Done", "Failed", "GenerationParams", "ModelConfig",
    "Omni", "OmnimuseError", "ParallelConfig", "Part", "Preview", "Progress", "Result", "WriterConfig", "explain",
]  # fmt: skip
