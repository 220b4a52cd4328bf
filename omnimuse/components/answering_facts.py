"""What the config.json of a model says that answers, perhaps aloud, to what it is shown: its parts. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.loader.facts import part

THINKER, TALKER, TEXT = "thinker_config", "talker_config", "text_config"
WAVES = "token2wav_config"
"""What makes sound of codes, where a spectrum is painted between the two."""
VISION, HEARING = (THINKER, "vision_config"), (THINKER, "audio_config")


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it says of the language model that reads and writes."""
    return part(part(config, THINKER), TEXT)


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has what speaks."""
    return bool(config.get("enable_audio_output", True)) and isinstance(config.get(TALKER), Mapping)
