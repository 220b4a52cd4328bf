"""What a model that answers to what it is shown is given to read: a conversation as tokens, and what stands for
pictures, videos and sounds among them.

The preparation and the places are those that transformers has for omni models, without torchvision and torchaudio:
Pillow and numpy do the arithmetic. A checkpoint in the layout of transformers is asked for: its components are `model`,
`vision`, `hearing`, `tokenizer` and `processor`.

Letters: S tokens, M of which stand for something shown, E width of the thinker, L layers that are told more, P pairs of
a head; n samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.components.answering_facts import THINKER
from omnimuse.components.seeing import Grid
from omnimuse.components.sights import Seen, ShownDecoder, line, plane
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.messages import SHOWN, Message
from omnimuse.core.output import TextRead
from omnimuse.core.params import WatchParams
from omnimuse.core.request import Clip, Picture, Recording
from omnimuse.loader.facts import part
from omnimuse.media.picture import pixels_of
from omnimuse.media.recording import samples_of
from omnimuse.media.watching import RATE, places
from omnimuse.pipeline.generate import tokens_read
from omnimuse.pipeline.reading import Patches
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import EXACT, State

PROCESSOR = "processor"
"""How pictures and sounds are prepared."""
MOST_PIECES = 768
"""Of a frame of a video."""
SECOND = 25
"""Places that a second of a video takes, where the checkpoint does not say."""
CHUNK_SECONDS = 2.0
"""Of a video with its sound, what is seen and heard in so many come together, where the checkpoint does not say."""
FRAMES = 2
"""Frames of a moment of a video."""


Spectrum = Callable[[Mapping[str, Any], Recording], Tensor]
"""(the processor's configuration, a sound) -> what is heard of it: its bands over time, float32 [M, frames]."""


@dataclass(frozen=True)
class Shown:
    """Something shown: its kind, what stands for it, of what can be seen the grid of its pieces, and of a video with
    its sound the `runs`: kinds of tokens that come one after the other, and their places, int64 [3, *], from 0.
    """

    kind: str
    seen: Seen
    grid: Grid | None = None
    runs: tuple[tuple[str, Tensor], ...] = ()

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """How many tokens of which kind stand for it, in order."""
        return [(kind, places.shape[1]) for kind, places in self.runs] or [(self.kind, len(self.seen.shown))]


@dataclass(frozen=True)
class Perceive(Stage):
    """Writes `shown`: a `Shown` of every picture, video and sound, those of a kind in order.

    `spectrum` prepares a sound; a frame of a video has at `least` so many pieces.
    """

    spectrum: Spectrum
    least: int = 0
    name: str = "perceive"
    reads: tuple[str, ...] = ("images", "videos", "sounds")
    writes: tuple[str, ...] = ("shown",)
    uses: tuple[str, ...] = ("vision", "hearing")
    computed = True

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return tuple(tuple(each.digest for each in state[name]) for name in ("images", "videos", "sounds"))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            found = [*(self._look(ctx, picture) for picture in state["images"])]
            found += [self._watch(ctx, video) for video in state["videos"]]
            state["shown"] = (*found, *(self._listen(ctx, sound) for sound in state["sounds"]))

    def _look(self, ctx: Context, picture: Picture) -> Shown:
        prepare = Patches.of(processor(ctx))
        patches, (rows, columns) = prepare(Image.fromarray(pixels_of(picture)))
        return self._seen(ctx, "image", patches, (1, rows, columns), prepare.merge)

    def _watch(self, ctx: Context, video: Clip) -> Shown:
        prepare = Patches.of(processor(ctx))
        piece = (prepare.side * prepare.merge) ** 2
        least, most = max(prepare.least, self.least * piece), min(prepare.most, MOST_PIECES * piece)
        prepare = replace(prepare, least=least, most=most)
        read = [prepare(Image.fromarray(pixels_of(frame))) for frame in frames(video)]
        rows, columns = read[0][1]
        moments = len(read) // prepare.frames
        # A patch of a picture is a moment that stands still: of each frame, one of its equal halves is taken.
        shape = (moments, prepare.frames, rows * columns, 3, prepare.frames, prepare.side**2)
        still = torch.stack([patches for patches, _ in read]).view(shape)[:, :, :, :, 0]  # [t, 2, h w, 3, p p]
        patches = still.permute(0, 2, 3, 1, 4).reshape(moments * rows * columns, -1)
        return self._seen(ctx, "video", patches, (moments, rows, columns), prepare.merge)

    def _seen(self, ctx: Context, kind: str, patches: Tensor, grid: Grid, merge: int) -> Shown:
        seen = ctx.network("vision")(patches.to(ctx.device), grid)
        return Shown(kind, seen, (grid[0], grid[1] // merge, grid[2] // merge))

    def _listen(self, ctx: Context, sound: Recording) -> Shown:
        heard = ctx.network("hearing")(self.spectrum(processor(ctx), sound).to(ctx.device))
        return Shown("audio", Seen(heard, heard.new_zeros(0, *heard.shape)))


def processor(ctx: Context) -> Mapping[str, Any]:
    """How pictures and sounds are prepared."""
    if PROCESSOR not in ctx.configs:
        raise ModelError("the checkpoint has no preprocessor_config.json, which pictures and sounds need; add it")
    found: Mapping[str, Any] = ctx.configs[PROCESSOR]
    return found


def frames(video: Clip) -> list[Picture]:
    """The frames of a video that are looked at; all of one that was read to be watched."""
    given = video.pictures
    return [given[place] for place in places(len(given), video.fps or RATE)]


def whisper(config: Mapping[str, Any], sound: Recording) -> tuple[Any, np.ndarray]:
    """What makes the bands of a sound as Whisper has them, and the samples [n] of `sound` that it takes; RequestError
    for too few.
    """
    from transformers import WhisperFeatureExtractor  # a second to import, for those who show sounds

    names = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")
    make = WhisperFeatureExtractor(**{name: config[name] for name in names if name in config})
    wave = samples_of(sound, make.sampling_rate, 1)[0]
    if len(wave) < make.n_fft:
        why = f"is too short: {sound.seconds:.3g} s; at least {make.n_fft / make.sampling_rate:g} s can be heard"
        raise RequestError(f"the sound {why}", "sounds")
    return make, wave


def spectrum(config: Mapping[str, Any], sound: Recording) -> Tensor:
    """What is heard of a sound of any length: its bands over time, float32 [M, frames], as Whisper has them."""
    make, wave = whisper(config, sound)
    made = make(wave, sampling_rate=make.sampling_rate, padding=True, truncation=False, return_tensors="pt")
    return made["input_features"][0][:, : len(wave) // make.hop_length]


@dataclass(frozen=True)
class Brief:
    """What is read beside tokens: which of them stand `at` something shown, bool [S], what stands for that, how all
    turn, [2, S, 1, P], and by how much further on than counted those are that come behind them.
    """

    at: Tensor
    seen: Seen
    turns: Tensor = field(metadata=EXACT)
    shift: int
    shown: tuple[Shown, ...]

    def rows(self, start: int, end: int) -> slice:
        """Which of what stands for something shown belong to the tokens from `start` to `end`."""
        first = int(self.at[:start].sum())
        return slice(first, first + int(self.at[start:end].sum()))

    def of(self, rows: slice) -> Seen:
        """What these are."""
        return Seen(self.seen.shown[rows], self.seen.deep[:, rows])


RECORDS = (Brief, Seen, Shown)
"""What slots of these stages hold (`Pipeline.records`)."""


@dataclass(frozen=True)
class ReadShown(Stage):
    """Writes `prompt_ids`, the tokens of the conversation or the prompt, and `brief`, None where nothing is shown.

    Tokens by their numbers, and a prompt that says itself by a mark where something is shown, are read as they stand.
    A video with its sound is `chunked`, or woven moment by moment.
    """

    chunked: bool = True
    name: str = "read"
    reads: tuple[str, ...] = ("prompt", "messages", "tokens", "shown")
    writes: tuple[str, ...] = ("prompt_ids", "brief")
    uses: tuple[str, ...] = ("tokenizer", "model")
    computed = True

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        tokenizer = ctx.components["tokenizer"]
        marks = Marks.of(ctx.configs["model"], tokenizer, chunked=self.chunked)
        for state in states:
            shown, text, messages, given = state["shown"], state["prompt"], state["messages"], state["tokens"]
            marked = bool(given) or any(mark in text for mark in marks.texts)
            heard = isinstance(chosen := state.request.extra, WatchParams) and chosen.use_audio_in_video
            if shown and not messages and not marked:
                messages = (_showing(text, shown, heard),)
            if any(mark in told for told in state.request.texts for mark in marks.texts):
                held = ", ".join(marks.texts)
                raise RequestError(
                    f"the text holds one of {held}, which stand for what is shown; take it out", "prompt"
                )
            ordered = list(_ordered(messages, shown))
            if messages and heard:
                messages, ordered = _heard_while_watched(messages, ordered, marks)
            tokens = tokens_read(tokenizer, state.request, messages)
            if not messages:
                ordered = marks.standing(tokens, shown, heard)
            tokens = marks.expanded(tokens, ordered)
            self._check(ctx, tokens)
            state["prompt_ids"] = tuple(tokens)
            state["brief"] = self._brief(ctx, tokens, ordered, marks) if ordered else None
            state.notes[self.name] = TextRead("prompt", "the model", len(tokens))

    def _check(self, ctx: Context, tokens: Sequence[int]) -> None:
        most = ctx.limits.max_sequence_length
        if not tokens:
            raise RequestError("the prompt is empty, and there is nothing to go on from; write something", "prompt")
        if len(tokens) >= most:
            why = f"this model reads and writes {most} in all: say less, or show less"
            raise RequestError(f"the prompt has {len(tokens)} tokens; {why}", "prompt")

    def _brief(self, ctx: Context, tokens: Sequence[int], shown: Sequence[Shown], marks: Marks) -> Brief:
        thinker = ctx.network("model")
        assert isinstance(thinker, ShownDecoder)
        places = placed(tokens, shown, marks)
        ids = torch.tensor(tokens, device=ctx.device)
        at = torch.isin(ids, torch.tensor(list(marks.ids.values()), device=ctx.device))
        return Brief(
            at,
            Seen.joined([each.seen for each in shown]),
            thinker.turns(places.to(ctx.device)),
            int(places.max()) + 1 - len(tokens),
            tuple(shown),
        )


def _showing(text: str, shown: Sequence[Shown], heard: bool) -> Message:
    """A prompt with what came with it, as somebody would say it; behind a video that is `heard`, its sound."""
    kinds = [each.kind for each in shown]
    if heard:
        videos, sounds = kinds.count("video"), kinds.count("audio")
        paired = ["video", "audio"] * min(videos, sounds)
        alone = ["video"] * (videos - sounds) + ["audio"] * (sounds - videos)
        kinds = [kind for kind in kinds if kind == "image"] + paired + alone
    return Message("user", text, (*((kind, "") for kind in kinds), ("text", text)))


def _ordered(messages: Sequence[Message], shown: Sequence[Shown]) -> Iterator[Shown]:
    """What is shown, in the order in which the messages show it."""
    waiting = {kind: iter([each for each in shown if each.kind == kind]) for kind in SHOWN}
    for message in messages:
        for kind, _ in message.parts:
            if kind in waiting:
                yield next(waiting[kind])


def _heard_while_watched(
    messages: Sequence[Message], shown: Sequence[Shown], marks: Marks
) -> tuple[tuple[Message, ...], list[Shown]]:
    """The messages without the sounds right behind videos, and what is shown with these in them; RequestError for a
    video without one.
    """
    waiting, found, told = iter(shown), list[Shown](), list[Message]()
    for message in messages:
        parts = list[tuple[str, str]]()
        for kind, text in message.parts:
            if kind == "audio" and parts and parts[-1][0] == "video" and not found[-1].runs:
                found[-1] = woven(found[-1], next(waiting), marks)
                continue
            found += [next(waiting)] if kind in SHOWN else []
            parts.append((kind, text))
        told.append(replace(message, parts=tuple(parts)))
    if any(each.kind == "video" and not each.runs for each in found):
        why = "a video has no sound in its file; show one right behind it, in the same message"
        raise RequestError(f"use_audio_in_video=True cannot be: {why}", "extra.use_audio_in_video")
    return tuple(told), found


def woven(video: Shown, sound: Shown, marks: Marks) -> Shown:
    """A video with its sound: what is seen in a chunk of time, then what is heard in it, then the next chunk."""
    made = {each.kind: _places(each, marks.second) for each in (video, sound)}
    runs, rows = list[tuple[str, Tensor]](), list[Tensor]()
    begins = {video.kind: 0, sound.kind: len(video.seen.shown)}
    for number in range(1 + max(int(each[0].max()) for each in made.values()) // marks.chunk):
        for kind, own in made.items():
            [at] = (own[0] // marks.chunk == number).nonzero(as_tuple=True)
            if len(at):
                runs.append((kind, own[:, at]))
                rows.append(begins[kind] + at)
    seen = Seen.joined([video.seen, sound.seen])
    order = torch.cat(rows).to(seen.shown.device)
    return Shown("video", Seen(seen.shown[order], seen.deep[:, order]), video.grid, tuple(runs))


@dataclass(frozen=True)
class Marks:
    """The tokens that stand for something shown: kind -> id, and their texts; places that a second of a video takes,
    and a chunk of one with its sound; the tokens that such a sound begins and ends with, where there are any; whether
    they and those of the video are `paired`: at either end two stand in one place.
    """

    ids: Mapping[str, int]
    texts: tuple[str, ...]
    second: int
    chunk: int
    around: tuple[tuple[int, ...], tuple[int, ...]]
    paired: bool

    @staticmethod
    def of(config: Mapping[str, Any], tokenizer: Any, *, chunked: bool = True) -> Marks:
        """What config.json says. Where it is not `chunked`, what is heard stands beside what is seen at that time."""
        thinker = part(config, THINKER)
        named = {kind: thinker.get(f"{kind}_token_id", thinker.get(f"{kind}_token_index")) for kind in SHOWN}
        if absent := [kind for kind, id_ in named.items() if id_ is None]:
            raise ModelError(f"config.json, {THINKER} has no {absent[0]}_token_id; use a complete checkpoint")
        ids = {kind: int(id_) for kind, id_ in named.items() if id_ is not None}
        texts = tuple(text for id_ in ids.values() if (text := tokenizer.token(id_)))
        second = int(thinker.get("position_id_per_seconds", SECOND))
        ends = (thinker.get(f"audio_{side}_token_id") for side in ("start", "end"))
        begin, end = (() if id_ is None else (int(id_),) for id_ in ends)
        chunk = int(second * thinker.get("seconds_per_chunk", CHUNK_SECONDS)) if chunked else 1
        return Marks(ids, texts, second, chunk, (begin, end), paired=chunked)

    def found(self, tokens: Sequence[int]) -> list[str]:
        """The kinds of what the marks among `tokens` stand for, in order."""
        kinds = {id_: kind for kind, id_ in self.ids.items()}
        return [kinds[token] for token in tokens if token in kinds]

    def standing(self, tokens: Sequence[int], shown: Sequence[Shown], woven_in: bool) -> list[Shown]:
        """What is shown, in the order of its marks among `tokens`; with `woven_in` each video has the sound in it that
        comes next. RequestError unless there are as many marks as came with them.
        """
        kinds, came = self.found(tokens), Counter(each.kind for each in shown)
        wanted = Counter(kinds) + Counter({"audio": kinds.count("video") * int(woven_in)})
        if wanted != came:
            why = "give one mark for each, and none for a sound that a video has in it"
            marked, shows = dict(wanted) or "nothing", dict(came) or "nothing"
            raise RequestError(f"the prompt has marks for {marked}, and {shows} came with it; {why}", "prompt")
        waiting = {kind: iter([each for each in shown if each.kind == kind]) for kind in SHOWN}
        found = list[Shown]()
        for kind in kinds:
            each = next(waiting[kind])
            found.append(woven(each, next(waiting["audio"]), self) if woven_in and kind == "video" else each)
        return found

    def expanded(self, tokens: Sequence[int], shown: Sequence[Shown]) -> list[int]:
        """`tokens` with as many marks for each thing shown as stand for it; ModelError for a template without them."""
        if (found := self.found(tokens)) != [each.kind for each in shown]:
            raise ModelError(
                f"the chat template has marks for {found or 'nothing'} where {[each.kind for each in shown]} is shown; "
                "use a complete checkpoint"
            )
        held, waiting, read = set(self.ids.values()), iter(shown), list[int]()
        for token in tokens:
            if token not in held:
                read.append(token)
                continue
            each = next(waiting)
            begin, end = self.around if each.runs else ((), ())
            if each.runs and not (begin and end):
                raise ModelError(f"config.json, {THINKER} has no audio_end_token_id; use a complete checkpoint")
            read += [*begin, *(self.ids[kind] for kind, count in each.kinds for _ in range(count)), *end]
        return read


def placed(tokens: Sequence[int], shown: Sequence[Shown], marks: Marks) -> Tensor:
    """The places of all tokens, int64 [3, S]: in a text and a sound one follows the other, what can be seen has times,
    rows and columns. At either end of a video with its sound, two marks may be `paired`: they stand in one place.
    """
    held, waiting = set(marks.ids.values()), list(shown)
    parts, place, at, behind = list[Tensor](), 0, 0, False
    while at < len(tokens):
        if tokens[at] in held:
            each = waiting.pop(0)
            made, count = place + _places(each, marks.second), len(each.seen.shown)
            last, behind = (each.runs[-1][1] + place if each.runs else made), marks.paired and bool(each.runs)
        else:
            count = next((n for n, token in enumerate(tokens[at:]) if token in held), len(tokens) - at)
            steps = torch.arange(count)
            steps[1:] -= int(behind)
            if marks.paired and waiting and waiting[0].runs:
                steps[-1] -= 1
            last = made = (place + steps).expand(3, -1)
        parts.append(made)
        place, at = int(last.max()) + 1, at + count
    return torch.cat(parts, dim=1)


def _places(each: Shown, second: int) -> Tensor:
    if each.runs:
        return torch.cat([places for _, places in each.runs], dim=1)
    if each.grid is None:
        return line(0, len(each.seen.shown))
    return plane(0, each.grid, round(second * FRAMES / RATE))  # a moment is two frames
