"""The stages of a model that answers aloud while it writes: its writing loop, its talking loop, and the sound.

What was written is handed over as soon as it is known that more comes: the last token is not spoken. So the talker
begins at the second token. What it draws by chance has a generator of its own, of the request's seed: it does not
depend on how long the text is.

Letters: S places, M tokens that stand for something shown, D width, E width of what is spoken.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading, numbers
from omnimuse.ar.sampling import Sampling
from omnimuse.components.answering_facts import TALKER, TEXT
from omnimuse.components.sights import Seeing, ShownDecoder, line
from omnimuse.components.voice import Voice
from omnimuse.core.calls import OPEN
from omnimuse.core.params import AnswerParams
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.loader.facts import part
from omnimuse.pipeline.conversing import Brief
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.speech import DecodeSpeech
from omnimuse.pipeline.stage import Context, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream
from omnimuse.pipeline.talking import Talk, Talking, decoder


def chosen_of(request: Request) -> AnswerParams:
    """How a request wants to be answered."""
    chosen = request.extra
    assert isinstance(chosen, AnswerParams)
    return chosen


def voice_of(request: Request, voices: Mapping[str, Any]) -> Any:
    """Of a checkpoint's voices, by their names, the one that is to speak: its first, unless another was chosen."""
    known, chosen = {name.lower(): voice for name, voice in voices.items()}, chosen_of(request).voice
    return known[chosen.lower()] if chosen else next(iter(known.values()))


def aloud(state: State) -> bool:
    """Whether the answer is spoken."""
    return chosen_of(state.request).aloud


@dataclass(frozen=True)
class Think(Generate):
    """From `prompt_ids` and `brief` to `reply`; `spoken` is a stream of what the talker hears: `overheard` of the
    prompt, and then a `word` for every token.
    """

    reads: tuple[str, ...] = ("prompt_ids", "brief")
    writes: tuple[str, ...] = ("kv", "reply", "spoken")
    streams: tuple[str, ...] = ("spoken",)
    only_tokens: ClassVar[bool] = False  # the talker hears what it thinks

    def thinker(self, ctx: Context) -> ShownDecoder:
        """What thinks."""
        thinker = ctx.network(self.network)
        assert isinstance(thinker, ShownDecoder)
        return thinker

    def embedded(self, ctx: Context, ids: Sequence[int]) -> Tensor:
        """What the thinker embeds, of tokens, [S, E]."""
        return self.thinker(ctx).embed_tokens(numbers(ids, ctx.device))

    @abstractmethod
    def overheard(self, ctx: Context, state: State) -> Any:
        """What the talker hears of a prompt that has been read."""

    @abstractmethod
    def word(self, ctx: Context, state: State, token: int) -> Tensor:
        """What the talker hears of a token that was written, [E], when another one is."""

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state["spoken"] = Stream()
        if not aloud(state):
            state["spoken"].close()
        return super().begin(ctx, state)

    def reading(self, state: State, ids: Sequence[int], start: int) -> Reading:
        brief: Brief | None = state["brief"]
        if brief is None:
            return super().reading(state, ids, start)
        row = partial(Seeing, ids, start, state["kv"], brief.shift, forbidden=self.forbidden(state))
        end = start + len(ids)
        if end > len(brief.at):
            return row()
        return row(brief.turns[:, start:end], brief.at[start:end], brief.of(brief.rows(start, end)))

    def shown(self, state: State) -> Hashable:
        came = state.request
        pictures, videos, sounds = came.images, came.videos, came.sounds
        return *(each.digest for each in pictures), *(each.digest for each in videos), *(each.digest for each in sounds)

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        super().apply(ctx, state, step, predictions)
        tokens, spoken = state.working["tokens"], state["spoken"]
        written = len(tokens) - len(state["prompt_ids"])
        if not written or spoken.closed:
            return
        if not spoken.items:
            spoken.put(self.overheard(ctx, state))
        while len(spoken.items) < written:  # the last one is not spoken
            number = len(state["prompt_ids"]) + len(spoken.items) - 1
            if state.request.tools and ctx.components[self.tokenizer].token(tokens[number]) == OPEN:
                spoken.close()  # calls of tools are for no ears
                return
            spoken.put(self.word(ctx, state, tokens[number]))

    def finish(self, ctx: Context, state: State) -> None:
        super().finish(ctx, state)
        if not state["spoken"].closed:
            state["spoken"].close()


@dataclass(frozen=True)
class Opening:
    """What a talker reads before it speaks, `script` [S, D], and the places of what it heard, int64 [3, U], which is
    how that begins; what stands beside frames behind the last word and behind that, [D] each; how the first and the
    other codes of a frame are chosen, and the codes that count as said before.
    """

    script: Tensor
    places: Tensor
    ends: tuple[Tensor, Tensor]
    first: Sampling
    others: Sampling
    before: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speak(Talk):
    """From `spoken`, a stream of what was overheard and then of words, to `codes`, a stream of frames."""

    longest: ClassVar[int] = 4096
    """Frames of one answer."""
    least: ClassVar[int] = 1
    """Places of a script, at least."""
    name: str = "talk"
    talker: str = "talker"
    memory: str = "voice_kv"
    reads: tuple[str, ...] = ("spoken",)
    writes: tuple[str, ...] = ("voice_kv", "codes")

    @abstractmethod
    def told(self, configs: Configs) -> Mapping[str, Any]:
        """How the first code of a frame is chosen where a request does not say, but for what is never said."""

    @abstractmethod
    def opening(self, ctx: Context, state: State) -> Opening:
        """How it begins, when the first word is there."""

    @abstractmethod
    def read(self, ctx: Context, word: Tensor) -> Tensor:
        """What stands for a word, [E] -> [D]."""

    def room(self, ctx: Context) -> int:
        """How many places there are, where the checkpoint says so."""
        config = part(ctx.configs["model"], TALKER)
        return int((config.get(TEXT) or config).get("max_position_embeddings", self.longest))

    def begin(self, ctx: Context, state: State) -> list[Step]:
        spoken: Stream = state["spoken"]
        if len(spoken.items) < 2:  # there is nothing to say
            state["codes"], state[self.memory] = Stream(), None
            return [Step(0)]
        opened, talker = self.opening(ctx, state), ctx.network(self.talker)
        assert isinstance(talker, Voice)
        script, heard = opened.script, opened.places
        first = int(heard.max()) + 1 if heard.numel() else 0
        own = line(first, len(script) - heard.shape[1]).to(ctx.device)
        state.working["turns"] = talker.turns(torch.cat([heard, own], dim=1))
        state.working["shift"], state.working["ends"] = first - heard.shape[1], opened.ends
        most = max(
            1, min(chosen_of(state.request).voice_tokens or self.longest, self.longest, self.room(ctx) - len(script))
        )
        how = most, opened.first, opened.others
        # What is drawn by chance here overlaps with what is drawn while the answer is written.
        chance = torch.Generator("cpu").manual_seed(state.request.seed(state.output))
        return self.begun(
            ctx, state, script, lambda kv: Talking(script, 0, *how, kv, [], [], chance, before=opened.before)
        )

    def tell(self, state: State, talking: Talking) -> None:
        """What was said is in no note: what was written is."""

    def ready(self, ctx: Context, state: State) -> bool:
        spoken: Stream = state["spoken"]
        talking: Talking | None = state.working.get("talk")
        if spoken.closed:
            return True
        if talking is None:
            return len(spoken.items) > 1
        return not talking.waits or len(spoken.items) > 1 + len(talking.said)

    def beside(self, ctx: Context, state: State, frame: int) -> Tensor:
        words = state["spoken"].items[2:]
        if frame < len(words):
            return self.read(ctx, words[frame])
        end, pad = state.working["ends"]
        return end if frame == len(words) else pad

    def reading(self, state: State, piece: Tensor, start: int) -> Reading:
        turns, end = state.working["turns"], start + len(piece)
        own = turns[:, start:end] if end <= turns.shape[1] else None
        return Seeing(piece, start, state[self.memory], state.working["shift"], own)

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        if not chosen_of(request).aloud:  # of a checkpoint that has no talker, none is
            return 0, 0
        each = decoder(ctx, self.talker).most.token_bytes
        return self.least * each, (ctx.limits.max_sequence_length + self.longest) * each

    def cost(self, ctx: Context, state: State) -> int:
        return super().cost(ctx, state) if "talk" in state.working else 1

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return super().rows(ctx, state, step) if "talk" in state.working else []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if "talk" in state.working:
            super().apply(ctx, state, step, predictions)


@dataclass(frozen=True)
class DecodeAnswer(DecodeSpeech):
    """The same; None where no sound is wanted."""

    def finish(self, ctx: Context, state: State) -> None:
        if aloud(state):
            super().finish(ctx, state)
        else:
            state["sound"] = None
