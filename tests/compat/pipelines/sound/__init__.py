"""A family that makes sound."""

from .pipeline_sound import SoundPipeline, get_sound_post_process_func

__all__ = ["SoundPipeline", "get_sound_post_process_func"]
