"""From a text to what the talker is given: what stands for every place that it reads before it speaks.

A place is the sum of a text's and a code's. First comes who speaks, then a header of codes (how it is thought, the
language, the voice) beside pads, then the text. A model that has voices reads the whole text beside pads before the
mark after which frames begin; one that takes the voice of a sound reads on while it speaks, a token beside every frame.

Letters: S places, D width, T frames that something stands beside.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.core.errors import RequestError
from omnimuse.core.output import TextRead
from omnimuse.core.params import SpeechParams
from omnimuse.core.request import Recording
from omnimuse.core.speech import SHORTEST
from omnimuse.media.recording import samples_of
from omnimuse.models.qwen3_tts.marks import Marks, marks_of
from omnimuse.models.qwen3_tts.speaker import SpeakerEncoder
from omnimuse.models.qwen3_tts.spec import AUTO
from omnimuse.models.qwen3_tts.transformer import Talker
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

SAID = "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n"
TOLD = "<|im_start|>user\n{}<|im_end|>\n"
BEFORE, BEHIND = 3, 5
"""How many tokens of `SAID` stand before the text and behind it."""
MANDARIN = "chinese"


@dataclass(frozen=True)
class HearVoice(Stage):
    """Writes `speaker` [D], whose voice the sound has that came with the prompt; None without one."""

    name: str = "hear"
    reads: tuple[str, ...] = ("sounds",)
    writes: tuple[str, ...] = ("speaker",)
    uses: tuple[str, ...] = ("speaker_encoder",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return tuple(sound.digest for sound in state["sounds"])

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["speaker"] = self._hear(ctx, state["sounds"][0]) if state["sounds"] else None

    def _hear(self, ctx: Context, sound: Recording) -> Tensor:
        encoder = ctx.network("speaker_encoder")
        assert isinstance(encoder, SpeakerEncoder)
        rate = encoder.config.sample_rate
        wave = torch.from_numpy(samples_of(sound, rate, 1)[0])  # [n]
        if len(wave) < SHORTEST * rate:
            why = f"lasts {len(wave) / rate:.2g} s; whose voice it is can be heard in at least {SHORTEST:g} s"
            raise RequestError(f"the sound {why}", "sounds")
        return encoder(wave.to(ctx.device))


@dataclass(frozen=True)
class ReadScript(Stage):
    """Writes `script` [S, D], and `beside` [T, D], what stands beside each frame, the last of it beside all others."""

    name: str = "read"
    reads: tuple[str, ...] = ("prompt", "speaker")
    writes: tuple[str, ...] = ("script", "beside")
    uses: tuple[str, ...] = ("tokenizer", "model")

    def key(self, ctx: Context, state: State) -> Hashable | None:
        chosen, heard = _chosen(state), tuple(sound.digest for sound in state.request.sounds)
        return (state["prompt"], chosen.voice, chosen.language, chosen.instructions, heard)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        tokenizer, talker = ctx.components["tokenizer"], ctx.network("model")
        assert isinstance(talker, Talker)
        marks = marks_of(ctx.configs["model"])
        for state in states:
            chosen = _chosen(state)
            if not state["prompt"].strip():
                raise RequestError("the prompt is empty; write what is to be said", "prompt")
            said = tokenizer(SAID.format(state["prompt"])).input_ids[0].to(ctx.device)
            told = None
            if chosen.instructions and chosen.instructions.strip():
                told = tokenizer(TOLD.format(chosen.instructions)).input_ids[0].to(ctx.device)
            header, speaker = talker.heard(torch.tensor(_header(marks, chosen), device=ctx.device)), state["speaker"]
            if speaker is not None:
                header = torch.cat([header, speaker[None]])
            state["script"], state["beside"] = _script(talker, marks, said, header, told, reads_on=speaker is not None)
            most = ctx.limits.max_sequence_length
            if len(state["script"]) >= most:
                why = f"this model reads and says {most} in all: say less at once"
                raise RequestError(f"the prompt has {len(state['script'])} tokens; {why}", "prompt")
            state.notes[self.name] = TextRead("prompt", "the model", len(said))


def _chosen(state: State) -> SpeechParams:
    chosen = state.request.extra
    assert isinstance(chosen, SpeechParams)
    return chosen


def _header(marks: Marks, chosen: SpeechParams) -> list[int]:
    """The codes before the text: how it is thought, with the language if one is known, and the voice."""
    voice = chosen.voice.lower() if chosen.voice else next(iter(marks.spoken.voices), None)
    language = (chosen.language or AUTO).lower()
    spoken = marks.spoken.languages.get(language)
    dialect = marks.spoken.dialects.get(voice) if voice else None
    if isinstance(dialect, str) and language in (AUTO, MANDARIN):
        spoken = marks.spoken.languages[dialect]
    thought = (
        [marks.codec_nothink_id, marks.codec_think_bos_id, marks.codec_think_eos_id]
        if spoken is None
        else [marks.codec_think_id, marks.codec_think_bos_id, spoken, marks.codec_think_eos_id]
    )
    return [*thought, *([marks.spoken.voices[voice]] if voice else [])]


def _script(
    talker: Talker, marks: Marks, said: Tensor, header: Tensor, told: Tensor | None, *, reads_on: bool
) -> tuple[Tensor, Tensor]:
    """What stands for every place, and beside the frames; a model that `reads_on` begins after the first token."""

    def code(id_: int) -> Tensor:
        return talker.heard(torch.tensor([id_], device=said.device))  # [1, D]

    start, end, pad = talker.read(
        said.new_tensor([marks.tts_bos_token_id, marks.tts_eos_token_id, marks.tts_pad_token_id])
    )
    text = torch.cat([talker.read(said[BEFORE:-BEHIND]), end[None]])
    beside = torch.cat([pad.expand(len(header), -1), start[None]])
    parts = [talker.read(said[:BEFORE]), beside + torch.cat([header, code(marks.codec_pad_id)])]
    if told is not None:
        parts.insert(0, talker.read(told))
    if reads_on:
        return torch.cat([*parts, text[:1] + code(marks.codec_bos_id)]), torch.cat([text[1:], pad[None]])
    parts += [text + code(marks.codec_pad_id), pad + code(marks.codec_bos_id)]
    return torch.cat(parts), pad[None]
