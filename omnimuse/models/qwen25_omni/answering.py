"""How Qwen2.5-Omni writes and speaks at once: what the talker hears of the thinker, and its talking loop.

The talker reads the whole conversation: of every token what the thinker thought of it and, unless it stands for
something shown, what it embeds. Then it hears the same of each token that was written, when the thinker has read it.

Letters: S places, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.ar.sampling import Sampling
from omnimuse.components.sights import ShownDecoder
from omnimuse.core.params import TokenParams
from omnimuse.core.request import Request
from omnimuse.loader.facts import part
from omnimuse.models.qwen25_omni.facts import TALKER, WAVES
from omnimuse.models.qwen25_omni.flow import CodesConfig
from omnimuse.models.qwen25_omni.spec import VOICES
from omnimuse.models.qwen25_omni.transformer import Pondering, Talker
from omnimuse.pipeline.answering import Opening, Speak, Think, aloud, chosen_of
from omnimuse.pipeline.conversing import Brief, Marks, placed
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State

USUAL: Mapping[str, Any] = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.8,
    "repetition_penalty": 1.05,
}
"""How the published code talks."""
END = "<|im_end|>"
"""What ends an answer where the checkpoint does not say."""


def voice_of(ctx: Context, request: Request) -> Mapping[str, Any]:
    """What the checkpoint has of the voice that is to speak: its first, unless another one was chosen."""
    voices: Mapping[str, Any] = ctx.configs[VOICES]
    known: dict[str, Mapping[str, Any]] = {name.lower(): voice for name, voice in voices.items()}
    chosen = chosen_of(request).voice
    return known[chosen.lower()] if chosen else next(iter(known.values()))


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
        [end] = ctx.components[self.tokenizer](END, add_special_tokens=False).input_ids[0].tolist()
        return {"eos_token_id": end, **super().told(ctx)}

    def begin(self, ctx: Context, state: State) -> list[Step]:
        thinker, tokens = self._thinker(ctx), state["prompt_ids"]
        width, dtype = thinker.config.hidden_size, thinker.norm.weight.dtype
        if aloud(state):
            state.working["thought"] = torch.zeros(len(tokens), width, dtype=dtype, device=ctx.device)
            state.working["last"] = torch.zeros(1, width, dtype=dtype, device=ctx.device)
        return super().begin(ctx, state)

    def reading(self, state: State, ids: Tensor, start: int) -> Reading:
        row = super().reading(state, ids, start)
        if not aloud(state):
            return row
        own, end = {each.name: getattr(row, each.name) for each in fields(row)}, start + len(ids)
        thought = state.working["thought"][start:end] if end <= len(state["prompt_ids"]) else state.working["last"]
        return Pondering(**own, thought=thought)

    def shown(self, state: State) -> Hashable:
        return None if aloud(state) else super().shown(state)  # the talker wants more of it than is remembered

    def overheard(self, ctx: Context, state: State) -> Overheard:
        thinker, ids, brief = self._thinker(ctx), state["prompt_ids"], state["brief"]
        embedded = thinker.embed_tokens(torch.tensor(ids, device=ctx.device))
        if brief is not None:
            embedded = embedded.masked_fill(brief.at[:, None], 0)
        config = part(ctx.configs["model"], TALKER)
        named = [int(voice_of(ctx, state.request)["bos_token"])]
        named += [int(config[f"tts_text_{name}_token_id"]) for name in ("end", "pad")]
        marks = thinker.embed_tokens(torch.tensor(named, device=ctx.device))
        return Overheard(state.working["thought"] + embedded, self._places(ctx, ids, brief), marks)

    def word(self, ctx: Context, state: State, token: int) -> Tensor:
        embedded = self._thinker(ctx).embed_tokens(torch.tensor(token, device=ctx.device))
        return state.working["last"][0] + embedded

    def _places(self, ctx: Context, ids: tuple[int, ...], brief: Brief | None) -> Tensor:
        marks = Marks.of(ctx.configs["model"], ctx.components[self.tokenizer])
        return placed(ids, () if brief is None else brief.shown, marks).to(ctx.device)

    def _thinker(self, ctx: Context) -> ShownDecoder:
        thinker = ctx.network(self.network)
        assert isinstance(thinker, ShownDecoder)
        return thinker


@dataclass(frozen=True)
class SpeakThought(Speak):
    """From `spoken`, a stream of an `Overheard` and then of what was thought of words, to `codes`."""

    predictor: str = ""

    def opening(self, ctx: Context, state: State) -> Opening:
        talker, config = ctx.network(self.talker), part(ctx.configs["model"], TALKER)
        assert isinstance(talker, Talker)
        heard, first = state["spoken"].items[:2]
        begin, end, pad = heard.marks
        names = ("mask", "pad", "start", "end")
        mask, empty, start, last = (int(config[f"tts_codec_{name}_token_id"]) for name in names)
        codes = talker.heard(torch.tensor([empty, start], device=ctx.device))
        script = torch.cat([heard.said, torch.stack([begin, first]) + codes])
        place = int(heard.places.max()) + 1
        own = torch.arange(place, place + 2, device=ctx.device).expand(3, -1)
        turns = talker.turns(torch.cat([heard.places, own], dim=1))
        longest = int(config.get("max_position_embeddings", self.longest))
        most = max(1, min(self.longest, longest - len(script)))
        chosen = TokenParams(temperature=chosen_of(state.request).voice_temperature)
        painted = part(part(ctx.configs["model"], WAVES), "dit_config").get("num_embeds", CodesConfig.num_embeds)
        unsaid = [code for code in range(painted + 1, talker.config.vocab_size) if code not in (empty, last)]
        told = {"eos_token_id": [empty, last], "suppress_tokens": sorted({start, *unsaid})}
        how = Sampling.of(chosen, {**USUAL, **told})
        shift = place - len(heard.said)
        return Opening(script, turns, shift, (end, pad), most, how, how, before=(mask, empty, start))

    def read(self, ctx: Context, word: Tensor) -> Tensor:
        return word
