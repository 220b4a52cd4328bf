"""How Qwen3-Omni speaks while it writes: its talking loop.

Letters: S places, U tokens of the user, E width of the thinker, D width of the talker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from omnimuse.ar.sampling import Sampling
from omnimuse.components.answering_facts import TALKER, TEXT
from omnimuse.core.params import TokenParams
from omnimuse.core.spec import Configs
from omnimuse.loader.facts import part
from omnimuse.models.qwen3_omni.talker import OmniTalker
from omnimuse.pipeline.answering import Opening, Speak, chosen_of, voice_of
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.talking import USUAL, unsaid

OTHERS: Mapping[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.8}
"""How the published code chooses all but the first code of a frame."""
OPENING, PADS = 3, 4
"""Tokens that begin an answer, and pads between them and its first word."""
LEAST = OPENING + PADS + 2
"""Places of a script beside those of the user."""


@dataclass(frozen=True)
class Overheard:
    """What the talker hears of the prompt: what the user said, [U, E], of which what stands for something shown `at`
    some places, bool [U], is what the thinker has made of it; their places, int64 [3, U]; how an answer begins [3, E];
    and the marks of texts: their beginning, their end and a pad, [3, E].
    """

    said: Tensor
    at: Tensor
    places: Tensor
    opening: Tensor
    marks: Tensor


@dataclass(frozen=True)
class SpeakOverheard(Speak):
    """From `spoken`, a stream of an `Overheard` and then of embedded tokens, to `codes`, a stream of frames."""

    least: ClassVar[int] = LEAST

    def told(self, configs: Configs) -> Mapping[str, Any]:
        return {**USUAL, "eos_token_id": part(configs["model"], TALKER)["codec_eos_token_id"]}

    def opening(self, ctx: Context, state: State) -> Opening:
        talker, heard, config = self._talker(ctx), state["spoken"].items[0], part(ctx.configs["model"], TALKER)
        user = torch.where(heard.at[:, None], talker.perceive(heard.said), talker.read(heard.said))
        end, pad = talker.read(heard.marks[1:])
        script = torch.cat([user, self._begins(ctx, state, config)])
        own = TokenParams(temperature=chosen_of(state.request).voice_temperature)
        marks = unsaid(part(config, TEXT)["vocab_size"], config["codec_eos_token_id"])
        first = Sampling.of(own, {**self.told(ctx.configs), "suppress_tokens": marks})
        return Opening(script, heard.places, (end, pad), first, replace(Sampling.of(own, OTHERS), ends=()))

    def read(self, ctx: Context, word: Tensor) -> Tensor:
        return self._talker(ctx).read(word[None])[0]

    def _talker(self, ctx: Context) -> OmniTalker:
        talker = ctx.network(self.talker)
        assert isinstance(talker, OmniTalker)
        return talker

    def _begins(self, ctx: Context, state: State, config: Mapping[str, Any]) -> Tensor:
        """How an answer begins: its first word, and before it who speaks, [`LEAST`, D]."""
        talker, (heard, first) = self._talker(ctx), state["spoken"].items[:2]
        voice = voice_of(state.request, config.get("speaker_id") or {})
        names = ("nothink", "think_bos", "think_eos")
        ids = [*(config[f"codec_{name}_id"] for name in names), voice, config["codec_pad_id"], config["codec_bos_id"]]
        codes = talker.heard(torch.tensor(ids, device=ctx.device))
        begin, _, pad = talker.read(heard.marks)
        words = [talker.read(heard.opening), pad.expand(PADS, -1), begin[None], talker.read(first[None])]
        return torch.cat(words) + torch.cat([codes.new_zeros(OPENING, codes.shape[1]), codes])
