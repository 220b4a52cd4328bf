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
from omnimuse.models.qwen3_tts.marks import Marks, marks_of
from omnimuse.models.qwen3_tts.spec import AUTO
from omnimuse.models.qwen3_tts.transformer import Predictor, Talker
from omnimuse.pipeline.cloning import chosen_of
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

SAID = "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n"
HEARD = "<|im_start|>assistant\n{}<|im_end|>\n"
TOLD = "<|im_start|>user\n{}<|im_end|>\n"
BEFORE, BEHIND = 3, 5
"""How many tokens of `SAID` stand before the text and behind it."""
ENDS = 2
"""The same of `HEARD`, which begins alike."""
MANDARIN = "chinese"


@dataclass(frozen=True)
class ReadScript(Stage):
    """Writes `script` [S, D], and `beside` [T, D], what stands beside each frame, the last of it beside all others."""

    name: str = "read"
    reads: tuple[str, ...] = ("prompt", "speaker", "heard")
    writes: tuple[str, ...] = ("script", "beside")
    uses: tuple[str, ...] = ("tokenizer", "model", "predictor")
    computed = True

    def key(self, ctx: Context, state: State) -> Hashable | None:
        chosen, heard = chosen_of(state), tuple(sound.digest for sound in state.request.sounds)
        return (state["prompt"], chosen.voice, chosen.language, chosen.instructions, chosen.ref_text, heard)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        tokenizer, talker = ctx.components["tokenizer"], ctx.network("model")
        assert isinstance(talker, Talker)
        marks = marks_of(ctx.configs["model"])
        for state in states:
            chosen = chosen_of(state)
            if not state["prompt"].strip():
                raise RequestError("the prompt is empty; write what is to be said", "prompt")
            said = tokenizer(SAID.format(state["prompt"])).input_ids[0].to(ctx.device)
            told = None
            if chosen.instructions and chosen.instructions.strip():
                told = tokenizer(TOLD.format(chosen.instructions)).input_ids[0].to(ctx.device)
            header, speaker = talker.heard(torch.tensor(_header(marks, chosen), device=ctx.device)), state["speaker"]
            if speaker is not None:
                header = torch.cat([header, speaker[None]])
            if state["heard"] is None:
                found = _script(talker, marks, said, header, told, reads_on=speaker is not None)
            else:
                before = tokenizer(HEARD.format(chosen.ref_text)).input_ids[0].to(ctx.device)
                words = torch.cat([before[BEFORE:-ENDS], said[BEFORE:-BEHIND]])
                found = _continued(talker, marks, said[:BEFORE], header, words, _codes(ctx, talker, state["heard"]))
            state["script"], state["beside"] = found
            most = ctx.limits.max_sequence_length
            if len(state["script"]) >= most:
                why = f"this model reads and says {most} in all: say less at once"
                raise RequestError(f"the prompt has {len(state['script'])} tokens; {why}", "prompt")
            state.notes[self.name] = TextRead("prompt", "the model", len(said))


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


def _begun(talker: Talker, marks: Marks, role: Tensor, header: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What stands for the places before the text, [S, D], and what for the end of a text and for a pad, [D] each."""
    ids = role.new_tensor([marks.tts_bos_token_id, marks.tts_eos_token_id, marks.tts_pad_token_id])
    start, end, pad = talker.read(ids)
    beside = torch.cat([pad.expand(len(header), -1), start[None]])
    codes = torch.cat([header, talker.heard(role.new_tensor([marks.codec_pad_id]))])
    return torch.cat([talker.read(role), beside + codes]), end, pad


def _codes(ctx: Context, talker: Talker, heard: Tensor) -> Tensor:
    """What stands for frames [B, G], [B, D]."""
    predictor = ctx.network("predictor")
    assert isinstance(predictor, Predictor)
    others = [predictor.heard(number, heard[:, number]) for number in range(1, heard.shape[1])]
    return torch.stack([talker.heard(heard[:, 0]), *others]).sum(0)


def _continued(
    talker: Talker, marks: Marks, role: Tensor, header: Tensor, words: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """What stands for every place, and beside the frames that follow, where a sound goes on whose `frames` [B, D] were
    heard: what is said in it and then, `words`, stands beside it from its first frame on.
    """
    begun, end, pad = _begun(talker, marks, role, header)
    said = torch.cat([talker.heard(role.new_tensor([marks.codec_bos_id])), frames])
    text = torch.cat([talker.read(words), end[None]])
    ahead = text[len(said) :]
    text = torch.cat([text[: len(said)], pad.expand(max(len(said) - len(text), 0), -1)])
    return torch.cat([begun, text + said]), torch.cat([ahead, pad[None]])


def _script(
    talker: Talker, marks: Marks, said: Tensor, header: Tensor, told: Tensor | None, *, reads_on: bool
) -> tuple[Tensor, Tensor]:
    """What stands for every place, and beside the frames; a model that `reads_on` begins after the first token."""

    def code(id_: int) -> Tensor:
        return talker.heard(torch.tensor([id_], device=said.device))  # [1, D]

    begun, end, pad = _begun(talker, marks, said[:BEFORE], header)
    text, parts = torch.cat([talker.read(said[BEFORE:-BEHIND]), end[None]]), [begun]
    if told is not None:
        parts.insert(0, talker.read(told))
    if reads_on:
        return torch.cat([*parts, text[:1] + code(marks.codec_bos_id)]), torch.cat([text[1:], pad[None]])
    parts += [text + code(marks.codec_pad_id), pad + code(marks.codec_bos_id)]
    return torch.cat(parts), pad[None]
