"""omnimuse: one small engine that turns prompts into pictures, video, sound and speech.

`from omnimuse import Omni, DiffusionParams` is the Python face. Importing this package does not import torch.
"""

from __future__ import annotations

import os
import signal
import sys

_COMMAND = sys.orig_argv[1:3] == ["-m", "omnimuse"] or os.path.basename("".join(sys.orig_argv[1:2])) == "omnimuse"
if _COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the command in silence until `cli.main` listens

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
