"""How Qwen2.5-Omni writes and speaks at once: what the talker hears of the thinker, and its talking loop.

The talker reads the whole conversation: of every token what the thinker thought of it and, unless it stands for
something shown, what it embeds. Then it hears the same of each token that was written, when the thinker has read it.

Letters: S places, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.ar.sampling import Sampling
from omnimuse.components.answering_facts import TALKER
from omnimuse.components.mel_flow import FLOW, CodesConfig
from omnimuse.core.params import TokenParams
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.loader.facts import facts_inside, part
from omnimuse.models.qwen25_omni.spec import VOICES
from omnimuse.models.qwen25_omni.transformer import Pondering, Talker
from omnimuse.pipeline.answering import Opening, Speak, Think, aloud, chosen_of, voice_of
from omnimuse.pipeline.conversing import Marks, placed
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.talking import USUAL

LIKELIER: Mapping[str, Any] = {"top_k": 40, "top_p": 0.8}
"""The codes among which the published code chooses, fewer than usual."""
END = "<|im_end|>"
"""What ends an answer where the checkpoint does not say."""


def voiced(ctx: Context, request: Request) -> tuple[Tensor, Tensor]:
    """What tells the voice that is to speak: a vector [V], and the bands of something that it said, [M, *]."""
    voice = voice_of(request, ctx.configs[VOICES])
    own, mel = (torch.tensor(voice[name], dtype=torch.float32, device=ctx.device) for name in ("cond", "ref_mel"))
    return own.flatten(), mel[0].T


@dataclass(frozen=True)
class Overheard:
    """What the talker hears of the prompt, [S, E], the places of that, int64 [3, S], and the marks of texts: their
    beginning, which the voice has, their end and a pad, [3, E].
    """

    said: Tensor
    places: Tensor
    marks: Tensor


@dataclass(frozen=True)
class ThinkAloud(Think):
    """The same; the talker hears what the thinker thought."""

    def told(self, ctx: Context) -> Mapping[str, Any]:
        [end] = ctx.components[self.tokenizer].numbers(END, special=False)
        return {"eos_token_id": end, **super().told(ctx)}

    def begin(self, ctx: Context, state: State) -> list[Step]:
        thinker, tokens = self.thinker(ctx), state["prompt_ids"]
        if aloud(state):
            none = thinker.norm.weight.new_zeros(1, thinker.config.hidden_size, device=ctx.device)
            state.working["thought"], state.working["last"] = none.repeat(len(tokens), 1), none
        return super().begin(ctx, state)

    def ahead(self, ctx: Context, state: State, most: int) -> int:
        return 1 if aloud(state) else super().ahead(ctx, state, most)  # what it thought of each is told

    def reading(self, state: State, ids: Sequence[int], start: int) -> Reading:
        row = super().reading(state, ids, start)
        if not aloud(state):
            return row
        own, end = {each.name: getattr(row, each.name) for each in fields(row)}, start + len(ids)
        thought = state.working["thought"][start:end] if end <= len(state["prompt_ids"]) else state.working["last"]
        return Pondering(**own, thought=thought)

    def shown(self, state: State) -> Hashable:
        return None if aloud(state) else super().shown(state)  # the talker wants more of it than is remembered

    def overheard(self, ctx: Context, state: State) -> Overheard:
        ids, brief, config = state["prompt_ids"], state["brief"], part(ctx.configs["model"], TALKER)
        embedded, shown = self.embedded(ctx, ids), () if brief is None else brief.shown
        if brief is not None:
            embedded = embedded.masked_fill(brief.at[:, None], 0)
        places = placed(ids, shown, Marks.of(ctx.configs["model"], ctx.components[self.tokenizer])).to(ctx.device)
        ends = [int(config[f"tts_text_{name}_token_id"]) for name in ("end", "pad")]
        begin = int(voice_of(state.request, ctx.configs[VOICES])["bos_token"])
        return Overheard(state.working["thought"] + embedded, places, self.embedded(ctx, [begin, *ends]))

    def word(self, ctx: Context, state: State, token: int) -> Tensor:
        return state.working["last"][0] + self.embedded(ctx, [token])[0]


@dataclass(frozen=True)
class SpeakThought(Speak):
    """From `spoken`, a stream of an `Overheard` and then of what was thought of words, to `codes`."""

    predictor: str = ""

    def told(self, configs: Configs) -> Mapping[str, Any]:
        ends = [int(part(configs["model"], TALKER)[f"tts_codec_{name}_token_id"]) for name in ("pad", "end")]
        return {**USUAL, **LIKELIER, "eos_token_id": ends}

    def opening(self, ctx: Context, state: State) -> Opening:
        talker, config = ctx.network(self.talker), part(ctx.configs["model"], TALKER)
        assert isinstance(talker, Talker)
        heard, first = state["spoken"].items[:2]
        begin, end, pad = heard.marks
        names = ("mask", "pad", "start", "end")
        mask, empty, start, last = (int(config[f"tts_codec_{name}_token_id"]) for name in names)
        codes = talker.heard(torch.tensor([empty, start], device=ctx.device))
        script = torch.cat([heard.said, torch.stack([begin, first]) + codes])
        painted = facts_inside(CodesConfig, ctx.configs["model"], FLOW, {}).num_embeds
        unsaid = [code for code in range(painted + 1, talker.config.vocab_size) if code not in (empty, last)]
        told = {**self.told(ctx.configs), "suppress_tokens": sorted({start, *unsaid})}
        chosen = TokenParams(temperature=chosen_of(state.request).voice_temperature)
        how = Sampling.of(chosen, told)
        return Opening(script, heard.places, (end, pad), how, how, before=(mask, empty, start))

    def read(self, ctx: Context, word: Tensor) -> Tensor:
        return word
