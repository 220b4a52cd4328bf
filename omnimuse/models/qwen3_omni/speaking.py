"""How Qwen3-Omni speaks while it writes: what the talker hears of the thinker, and its talking loop.

The thinker hands over what it was told, as soon as it has read it, and then what stands for every token.

Letters: S places, U tokens of the user, E width of the thinker, D width of the talker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from omnimuse.ar.sampling import Sampling
from omnimuse.components.sights import ShownDecoder
from omnimuse.core.params import TokenParams
from omnimuse.loader.facts import part
from omnimuse.models.qwen3_omni.facts import TALKER, TEXT
from omnimuse.models.qwen3_omni.talker import OmniTalker
from omnimuse.models.qwen3_tts.talking import UNSAID
from omnimuse.pipeline.answering import Opening, Speak, chosen_of
from omnimuse.pipeline.conversing import Brief, Marks, placed
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State

USUAL: Mapping[str, Any] = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
}
"""How the published code talks."""
OTHERS: Mapping[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.8}
"""How it chooses all but the first code of a frame."""
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


def overheard(ctx: Context, state: State, heard: Tensor | None) -> Overheard:
    """What the talker hears of a prompt that has been read; `heard`, [M, E], is what was made of what is shown."""
    config: Mapping[str, Any] = ctx.configs["model"]
    thinker, ids = ctx.network("model"), state["prompt_ids"]
    assert isinstance(thinker, ShownDecoder)
    tokens = torch.tensor(ids, device=ctx.device)
    said, brief = users(ids, config), state["brief"]
    embedded = thinker.embed_tokens(tokens)
    at = torch.zeros_like(tokens, dtype=torch.bool)
    if brief is not None and heard is not None:
        at = brief.at
        embedded = embedded.index_copy(0, at.nonzero()[:, 0], heard.to(embedded.dtype))
    chosen = torch.tensor(said, device=ctx.device, dtype=torch.bool)
    spoken = [token for token, own in zip(ids, said, strict=True) if own]
    shown = _shown_to(brief, chosen)
    places = placed(spoken, shown, Marks.of(config, ctx.components["tokenizer"])) if spoken else tokens.new_zeros(3, 0)
    begins = last_opening(ids, config)
    assert begins is not None
    marks = [int(config[f"tts_{name}_token_id"]) for name in ("bos", "eos", "pad")]
    named = torch.tensor([*ids[begins : begins + OPENING], *marks], device=ctx.device)
    opening, told = thinker.embed_tokens(named).split([OPENING, len(marks)])
    return Overheard(embedded[chosen], at[chosen], places.to(ctx.device), opening, told)


def _shown_to(brief: Brief | None, chosen: Tensor) -> Sequence[Any]:
    """What is shown in messages of the user."""
    if brief is None:
        return ()
    ends = torch.tensor([len(each.seen.shown) for each in brief.shown]).cumsum(0) - 1
    own = chosen[brief.at].cpu()[ends]
    return [each for each, theirs in zip(brief.shown, own.tolist(), strict=True) if theirs]


def users(ids: Sequence[int], config: Mapping[str, Any]) -> list[bool]:
    """Which tokens of a conversation are of messages of the user, marks included."""
    start, user = config["im_start_token_id"], config["user_token_id"]
    found, own = list[bool](), len(ids) > 1 and ids[1] == user
    for at, token in enumerate(ids):
        if token == start:
            own = at + 1 < len(ids) and ids[at + 1] == user
        found.append(own)
    return found


def last_opening(ids: Sequence[int], config: Mapping[str, Any]) -> int | None:
    """Where the answer begins that is to be written; None where none was opened."""
    pair = config["im_start_token_id"], config["assistant_token_id"]
    opened = [at for at in range(len(ids) - OPENING + 1) if tuple(ids[at : at + 2]) == pair]
    return opened[-1] if opened else None


@dataclass(frozen=True)
class SpeakOverheard(Speak):
    """From `spoken`, a stream of an `Overheard` and then of embedded tokens, to `codes`, a stream of frames."""

    least: ClassVar[int] = LEAST

    def opening(self, ctx: Context, state: State) -> Opening:
        talker, heard = ctx.network(self.talker), state["spoken"].items[0]
        assert isinstance(talker, OmniTalker)
        user, talked = self._user(talker, heard), self._begins(ctx, state, talker)
        script = torch.cat([user, talked])
        first = int(heard.places.max()) + 1 if heard.places.numel() else 0
        own = torch.arange(first, first + LEAST, device=ctx.device).expand(3, -1)
        turns = talker.turns(torch.cat([heard.places, own], dim=1))
        end, pad = talker.read(heard.marks[1:])
        longest = int(part(part(ctx.configs["model"], TALKER), TEXT).get("max_position_embeddings", self.longest))
        most = max(1, min(self.longest, longest - len(script)))
        return Opening(script, turns, first - len(user), (end, pad), most, *self._how(ctx, state))

    def read(self, ctx: Context, word: Tensor) -> Tensor:
        talker = ctx.network(self.talker)
        assert isinstance(talker, OmniTalker)
        return talker.read(word[None])[0]

    def _user(self, talker: OmniTalker, heard: Overheard) -> Tensor:
        """What stands for what the user said and showed, [U, D]."""
        read = talker.read(heard.said)
        return torch.where(heard.at[:, None], talker.perceive(heard.said), read)

    def _begins(self, ctx: Context, state: State, talker: OmniTalker) -> Tensor:
        """How an answer begins: its first word, and before it who speaks, [`LEAST`, D]."""
        heard, first = state["spoken"].items[:2]
        config, chosen = part(ctx.configs["model"], TALKER), chosen_of(state.request)
        voices = {name.lower(): id_ for name, id_ in (config.get("speaker_id") or {}).items()}
        voice = voices[chosen.voice.lower()] if chosen.voice else next(iter(voices.values()))
        names = ("nothink", "think_bos", "think_eos")
        ids = [*(config[f"codec_{name}_id"] for name in names), voice, config["codec_pad_id"], config["codec_bos_id"]]
        codes = talker.heard(torch.tensor(ids, device=ctx.device))
        begin, _, pad = talker.read(heard.marks)
        words = [talker.read(heard.opening), pad.expand(PADS, -1), begin[None], talker.read(first[None])]
        return torch.cat(words) + torch.cat([codes.new_zeros(OPENING, codes.shape[1]), codes])

    def _how(self, ctx: Context, state: State) -> tuple[Sampling, Sampling]:
        chosen, config = chosen_of(state.request), part(ctx.configs["model"], TALKER)
        words, end = part(config, TEXT)["vocab_size"], config["codec_eos_token_id"]
        unsaid = [code for code in range(words - UNSAID, words) if code != end]
        own = TokenParams(temperature=chosen.voice_temperature)
        first = Sampling.of(own, {**USUAL, "eos_token_id": end, "suppress_tokens": unsaid})
        return first, replace(Sampling.of(own, OTHERS), ends=())
