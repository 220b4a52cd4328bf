"""`sglang.multimodal_gen.configs.sample.sampling_params`: what a request chose. No torch.

A pipeline's package has a subclass of it with its own defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from omnimuse.compat.composed.names import no_attribute, no_name


class DataType(Enum):
    """What comes out."""

    IMAGE = auto()
    VIDEO = auto()

    def get_default_extension(self) -> str:
        """The suffix of a file of it."""
        return "jpg" if self is DataType.IMAGE else "mp4"


@dataclass
class _Asked:
    """What is asked for, and of what."""

    data_type: DataType = DataType.VIDEO
    request_id: str | None = None
    image_path: Any = None
    prompt: str | list[str] | None = None
    negative_prompt: str | None = ""
    prompt_path: str | None = None
    num_outputs_per_prompt: int = 1
    seed: int = 1024


@dataclass
class _Shapes:
    """How large it is."""

    num_frames: int = 125
    num_frames_round_down: bool = False
    height: int | None = None
    width: int | None = None
    height_not_provided: bool = False
    width_not_provided: bool = False
    fps: int = 24


@dataclass
class _Denoising:
    """How it is drawn; without a `true_cfg_scale` two predictions are weighed by `guidance_scale`."""

    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    guidance_scale_2: float | None = None
    guidance_rescale: float = 0.0
    true_cfg_scale: float | None = None
    boundary_ratio: float | None = None
    max_sequence_length: int | None = None
    enable_teacache: bool = False
    enable_cache_dit: bool = False
    cache_dit_params: dict[str, Any] | None = None


@dataclass
class _Files:
    """What becomes of it, and what else is told."""

    output_path: str | None = "outputs/"
    output_file_name: str | None = None
    save_output: bool = True
    return_frames: bool = False
    return_trajectory_latents: bool = False
    return_trajectory_decoded: bool = False
    profile: bool = False
    num_profiled_timesteps: int = 2
    debug: bool = False
    perf_dump_path: str | None = None


@dataclass
class SamplingParams(_Files, _Denoising, _Shapes, _Asked):
    """Everything that a request can choose; a subclass has its pipeline's defaults, and perhaps fields of its own.

    The default of `negative_prompt` is an empty text: theirs describes bad videos, which is left to the pipeline.
    """

    def __post_init__(self) -> None:
        self.data_type = DataType.VIDEO if self.num_frames > 1 else DataType.IMAGE

    def output_size_str(self) -> str:
        """The size as people write it."""
        return f"{self.width}x{self.height}"

    def seconds(self) -> float:
        """How long a video is."""
        return self.num_frames / self.fps

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
