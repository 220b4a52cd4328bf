"""How Qwen3-TTS talks: the loop of what speaks, from a script that is there from the beginning.

Letters: S places, D width, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from torch import Tensor

from omnimuse.ar.sampling import Sampling
from omnimuse.core.params import SpeechParams, TokenParams
from omnimuse.core.request import Request
from omnimuse.core.spec import OPTIONS
from omnimuse.models.qwen3_tts.marks import Marks, marks_of
from omnimuse.pipeline import talking
from omnimuse.pipeline.speech import unheard
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.talking import Talk, Talking, decoder

USUAL: Mapping[str, Any] = {
    **talking.USUAL,
    "max_new_tokens": 2048,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_k": 50,
    "subtalker_top_p": 1.0,
}
"""How the published code talks where generation_config.json does not say."""
FEWEST = 2
"""Codes that the talker says before it may end."""
HEADER = 32
"""Places of a script that are no text, at most."""


@dataclass(frozen=True)
class TalkScript(Talk):
    """From `script` and `beside` to `codes`, a stream of frames of G codes, those of what was `heard` first; `kv` is
    what the talker remembers.
    """

    reads: tuple[str, ...] = ("script", "beside", "heard")

    def begin(self, ctx: Context, state: State) -> list[Step]:
        script, chosen = state["script"], state.request.extra
        assert isinstance(chosen, SpeechParams)
        marks, told = marks_of(ctx.configs["model"]), {**USUAL, **ctx.configs[OPTIONS]}
        most = min(chosen.max_tokens or told["max_new_tokens"], ctx.limits.max_sequence_length - len(script))
        how = sampling(chosen, told, marks)
        plan = self.begun(ctx, state, script, lambda kv: Talking(script, 0, most, *how, kv, [], [], state.generator))
        for frame in [] if state["heard"] is None else state["heard"].tolist():
            state["codes"].put(unheard(frame))
        return plan

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        chosen, longest = request.extra, ctx.limits.max_sequence_length
        assert isinstance(chosen, SpeechParams)
        most = chosen.max_tokens or {**USUAL, **ctx.configs[OPTIONS]}["max_new_tokens"]
        read = len((request.prompt + (chosen.instructions or "") + (chosen.ref_text or "")).encode()) + HEADER
        if chosen.ref_text is not None:
            read += sum(frames_of(ctx.configs["speech_tokenizer"], sound.seconds) for sound in request.sounds)
        each = decoder(ctx, self.talker).most.token_bytes
        return each * (1 + max(FEWEST, chosen.min_tokens)), each * min(read + most, longest)

    def beside(self, ctx: Context, state: State, frame: int) -> Tensor:
        beside: Tensor = state["beside"]
        return beside[min(frame, len(beside) - 1)]


def frames_of(codec: Mapping[str, Any], seconds: float) -> int:
    """Of a sound that is so long, by the codec's config.json."""
    return ceil(seconds * codec.get("input_sample_rate", 24_000) / codec.get("encode_downsample_rate", 1920)) + 1


def sampling(chosen: SpeechParams, told: Mapping[str, Any], marks: Marks) -> tuple[Sampling, Sampling]:
    """How the first code of a frame is chosen, and how the others are."""
    end = marks.codec_eos_token_id
    ends = {"eos_token_id": end, "suppress_tokens": talking.unsaid(marks.vocab_size, end)}
    first = Sampling.of(chosen, {**told, **ends, "min_new_tokens": FEWEST})
    names = ("temperature", "top_k", "top_p")
    besides = {name: told[f"subtalker_{name}"] for name in names} | {"do_sample": told["subtalker_dosample"]}
    own = TokenParams(temperature=chosen.code_temperature, top_k=chosen.code_top_k, top_p=chosen.code_top_p)
    return first, replace(Sampling.of(own, besides), ends=())
