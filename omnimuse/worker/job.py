"""What a request has come to, while its outputs are in the making: what is made, what it took, what was said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.output import Note, PicturesShown, Result, TextRead, TextWritten
from omnimuse.core.request import Recording, Request
from omnimuse.observe.labels import label_of
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Loop, Stage
from omnimuse.pipeline.state import State
from omnimuse.worker.blocks import Ran, held_of, most, seconds_of
from omnimuse.worker.clock import Share, Span
from omnimuse.worker.handover import Carried
from omnimuse.worker.took import Took

IN_TILES = "decoded in tiles of {} pixels a side, as there is no room for more at once"


@dataclass
class Spent:
    """What a stage took of one output, run by run or step by step: of each its spans, and the bytes held behind it."""

    spans: list[tuple[Span, ...]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


@dataclass
class Job:
    """A request on the runner: its states still in the making, and by medium the finished outputs, on the CPU, and of
    which outputs these are `there`. `lean` is what a state's loop does with where it began anew, as memory ran out.
    """

    request: Request
    states: dict[str, State]
    made: dict[str, Any] = field(default_factory=dict)
    there: dict[str, set[int]] = field(default_factory=dict)
    spent: dict[tuple[str, str], Spent] = field(default_factory=dict)
    blocks: dict[tuple[str, str], list[Ran]] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)
    written: dict[int, TextWritten] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    timed: dict[str, float] = field(default_factory=dict)
    carried: dict[int, Carried] = field(default_factory=dict)
    lean: dict[str, Context] = field(default_factory=dict)

    def spend(self, state: State, stage: Stage, held: int, *spans: Span) -> None:
        """Note what `stage`, or a stride of a loop, took of `state`, to be read when the outputs are here, and how many
        bytes were `held` when it was done.
        """
        key = stage.name, state.id
        if (spent := self.spent.get(key)) is None:
            spent = self.spent[key] = Spent()
        steps = state.stride
        spent.spans += [tuple(Share(span, steps) for span in spans) if steps > 1 else spans] * steps
        spent.held += [held] * steps

    def see(self, state: State, ran: Iterable[Ran]) -> None:
        """Note which blocks ran for `state`, alone or with others, if that was asked for."""
        for each in ran if self.request.blocks else ():
            self.blocks.setdefault((each.name, state.id), []).append(each)

    def timings(self) -> dict[str, tuple[float, ...]]:
        """Seconds by stage, of the output that took longest in it: of one run, or of every step."""
        found: dict[str, tuple[float, ...]] = {name: (seconds,) for name, seconds in self.timed.items()}
        for (stage, _), spent in self.spent.items():
            seconds = tuple([sum([span.seconds() for span in spans]) for spans in spent.spans])
            found[stage] = max(found.get(stage, ()), seconds, key=sum)
        return found

    def held(self) -> dict[str, tuple[int, ...]]:
        """Bytes by stage, after one run or every step: the most of all outputs."""
        found: dict[str, tuple[int, ...]] = {}
        for (stage, _), spent in self.spent.items():
            found[stage] = most(found.get(stage, ()), spent.held)
        return found

    def take(self, state: State, made: Mapping[str, Any]) -> None:
        """Keep what `state` has made, by medium, in its place among the outputs of the request."""
        for medium, value in made.items():
            self.made[medium] = placed(self.made.get(medium), value, state.output, self.request.outputs)
            self.there.setdefault(medium, set()).add(state.output)
        self.notes.update(state.notes)
        self.written |= {note.output: note for note in state.notes.values() if isinstance(note, TextWritten)}
        self.said += state.said
        self.timed |= {name: max(seconds, self.timed.get(name, 0.0)) for name, seconds in state.timed.items()}
        del self.states[state.id]

    def took(self) -> Took:
        """What it took here."""
        return Took(self.timings(), self.held(), seconds_of(self.blocks), held_of(self.blocks))

    def result(self, pipeline: Pipeline, took: Took) -> Result:
        """What came of it; `took` is of other pools, too."""
        request, loops = self.request, {stage.name for stage in pipeline.stages if isinstance(stage, Loop)}
        kept, lost = kept_sound(request)
        tiles = [IN_TILES.format(request.tile)] if request.tile else []
        beside = {} if kept is None or "audio" in self.made else {"audio": [kept] * request.outputs}
        return Result(
            request.id,
            request.prompt,
            replace(request.params, extra=request.extra),
            tensors={medium: self._whole(medium) for medium in pipeline.results if medium in self.made} | beside,
            seeds=[request.seed(index) for index in range(request.outputs)],
            timings={stage: sum(seconds) for stage, seconds in took.timings.items()},
            steps={stage: seconds for stage, seconds in took.timings.items() if stage in loops},
            held=took.held,
            blocks=took.blocks,
            blocks_held=took.blocks_held,
            needs=request.needs,
            labels={each.name: each.label for each in pipeline.stages if each.label != label_of(each.name)},
            texts=tuple(note for note in self.notes.values() if isinstance(note, TextRead)),
            shown=tuple(size for note in self.notes.values() if isinstance(note, PicturesShown) for size in note.sizes),
            written=tuple(self.written[index] for index in sorted(self.written)),
            said=tuple(
                dict.fromkeys(
                    [*(each for video in request.videos for each in video.warnings), *lost, *self.said, *tiles]
                )
            ),
        )

    def _whole(self, medium: str) -> Any:
        """What all outputs hold of `medium`; a list with None where some do without."""
        made, there = self.made[medium], self.there[medium]
        count = self.request.outputs
        return made if len(there) == count else [made[i] if i in there else None for i in range(count)]


def kept_sound(request: Request) -> tuple[Recording | None, tuple[str, ...]]:
    """What is heard in the video that another is made of: it has that, too, as far as it lasts. And what its sender
    should know of it. None where nothing is heard, and where it would not fit.
    """
    track, params = next((video.track for video in request.videos), None), request.params
    if track is None or not params.num_frames or not params.fps:
        return None, ()
    if params.output_type == "latent":
        return None, ("the sound of the video was left out, for latents have none; ask for 'pil' or 'pt' to keep it",)
    fps = request.videos[0].fps
    if abs(params.fps - fps) > 0.01 * fps:
        why = f"it has {fps:.5g} frames a second, and {params.fps:.5g} were asked for"
        return None, (f"the sound of the video was left out, for it would not fit: {why}; leave fps out to keep it",)
    return track.first(params.num_frames / params.fps), ()


def placed(there: Any, value: Any, index: int, count: int) -> Any:
    """`there` (None at first) with `value` as number `index` of `count`: a tensor [count, ...] while all that came are
    tensors of one shape, else a list. On the CPU.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        if count == 1:
            return value.cpu()[None]
        if there is None:
            there = torch.empty((count, *value.shape), dtype=value.dtype)
        if isinstance(there, Tensor) and there.shape[1:] == value.shape:
            there[index].copy_(value)
            return there
        value = value.cpu()
    several: list[Any] = [None] * count if there is None else list(there)
    several[index] = value
    return several
