"""The stages of Qwen3-TTS: read and talk, and meanwhile decode what was said."""

from __future__ import annotations

from types import MappingProxyType

from omnimuse.models.qwen3_tts.reading import ReadScript
from omnimuse.models.qwen3_tts.spec import SPEC
from omnimuse.models.qwen3_tts.talking import TalkScript
from omnimuse.pipeline.cloning import HearVoice
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.speech import DecodeSpeech


class Qwen3TtsPipeline(Pipeline):
    """A text in, speech out."""

    spec = SPEC
    tracks = ((HearVoice(), ReadScript(), TalkScript()), (DecodeSpeech("speech_tokenizer"),))
    results = MappingProxyType({"audio": "sound"})


PIPELINE = Qwen3TtsPipeline
