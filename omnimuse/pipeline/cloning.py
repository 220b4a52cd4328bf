"""The stock stage of what speaks with the voice of a sound: it hears whose that is, and makes codes of the sound itself
where what is said in it came, too.

Letters: n samples, D width, B frames of G codes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.components.speaker import SpeakerEncoder
from omnimuse.components.speech_encoder import SpeechEncoder
from omnimuse.core.errors import RequestError
from omnimuse.core.params import SpeechParams
from omnimuse.core.request import Recording
from omnimuse.core.speech import SHORTEST
from omnimuse.media.recording import samples_of
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class HearVoice(Stage):
    """Writes `speaker` [D], whose voice the sound has that came with the prompt, and `heard` [B, G], the codes of its
    frames, where its text came, too; None without them.
    """

    name: str = "hear"
    reads: tuple[str, ...] = ("sounds",)
    writes: tuple[str, ...] = ("speaker", "heard")
    uses: tuple[str, ...] = ("speaker_encoder", "speech_encoder")
    computed = True

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return (chosen_of(state).ref_text is not None, *(sound.digest for sound in state["sounds"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["speaker"] = state["heard"] = None
            if state["sounds"]:
                [sound] = state["sounds"]
                state["speaker"] = self._voice(ctx, sound)
                if chosen_of(state).ref_text is not None:
                    state["heard"] = self._codes(ctx, sound)

    def _voice(self, ctx: Context, sound: Recording) -> Tensor:
        encoder = ctx.network("speaker_encoder")
        assert isinstance(encoder, SpeakerEncoder)
        rate = encoder.config.sample_rate
        wave = torch.from_numpy(samples_of(sound, rate, 1)[0])  # [n]
        if len(wave) < SHORTEST * rate:
            why = f"lasts {len(wave) / rate:.2g} s; whose voice it is can be heard in at least {SHORTEST:g} s"
            raise RequestError(f"the sound {why}", "sounds")
        return encoder(wave.to(ctx.device))

    def _codes(self, ctx: Context, sound: Recording) -> Tensor:
        encoder = ctx.network("speech_encoder")
        assert isinstance(encoder, SpeechEncoder)
        wave = torch.from_numpy(samples_of(sound, encoder.config.sampling_rate, 1)[0])
        return encoder(wave.to(ctx.device))


def chosen_of(state: State) -> SpeechParams:
    """How a request is to be spoken."""
    chosen = state.request.extra
    assert isinstance(chosen, SpeechParams)
    return chosen
