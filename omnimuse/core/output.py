"""What comes back: results and the events on the way to them.

Made by the worker's runner and the engine, read by the Python API, the command line and the server. Tensors travel
through here as opaque values; this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from omnimuse.core.calls import LOST, Call, Splitter
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.params import DiffusionParams


@dataclass(frozen=True)
class Progress:
    """One step of one output is done: `step` of `steps` within `stage` (1-based); None: nobody knows of how many."""

    request_id: str
    output: int
    stage: str
    step: int
    steps: int | None


@dataclass(frozen=True)
class Preview:
    """A cheap look at an unfinished output: `image` is a uint8 array [H, W, 3]."""

    request_id: str
    output: int
    step: int
    image: Any


@dataclass(frozen=True)
class Chunk:
    """A piece of an unfinished part that will not change any more: what follows the pieces before it.

    `data` of sound is a float32 array [channels, n] from sample `start` on, of text the words, and `tokens` are those
    that were written since the piece before.
    """

    request_id: str
    output: int
    medium: str
    start: int
    data: Any
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Done:
    """The request is finished: all its outputs, in order."""

    request_id: str
    result: Result


@dataclass(frozen=True)
class Failed:
    """The request ended without a result."""

    request_id: str
    error: OmnimuseError


@dataclass(frozen=True)
class Handed:
    """A request goes on in another pool: piece `number` of what it takes along (`worker/handover.py`)."""

    request_id: str
    number: int
    handover: Any
    last: bool


Event = Progress | Preview | Chunk | Done | Failed | Handed


def is_last(event: Event) -> bool:
    """Whether nothing more comes of its request, here."""
    return isinstance(event, Done | Failed) or (isinstance(event, Handed) and event.last)


@dataclass(frozen=True)
class TextRead:
    """How much of a text (`source`: "prompt", "negative_prompt") one encoder read: `tokens`, those of the family's
    template included; `left_out` more did not fit, because `why`."""

    source: str
    encoder: str
    tokens: int
    left_out: int = 0
    why: str = ""

    @property
    def warning(self) -> str:
        """What a person should know; empty if all was read."""
        if not self.left_out:
            return ""
        name = self.source.replace("_", " ")
        return (
            f"the {name} has {self.tokens + self.left_out} tokens and {self.encoder} reads {self.tokens} of them "
            f"({self.why}), not the last {self.left_out}; say what matters first, or less"
        )


@dataclass(frozen=True)
class PicturesShown:
    """The width and height in which the model was shown each picture that came with a prompt, in order."""

    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TextWritten:
    """The tokens that output number `output` was written in, and why it ended: by a `"stop"`, or at its `"length"`.

    The first `reused` tokens of the prompt had been read before, for another request. `calls` are those of tools, which
    are no part of the text.
    """

    output: int
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]
    reused: int = 0
    calls: tuple[Call, ...] = ()


Note = TextRead | PicturesShown | TextWritten
"""What a stage has to tell people."""


@dataclass(frozen=True)
class Part:
    """A finished output of one medium, or one medium of an output that has several.

    `data` of an "image" is a Pillow picture, of a "video" a `media.video.Video`, of "audio" a `media.sound.Sound`, of
    "text" a string.
    """

    medium: str
    data: Any


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a prompt took. `timings` are seconds per stage, summed over the ticks this request took part in, `steps`
    those of every step of a stage that has some; `held` are the bytes that the process held when each was done,
    `blocks` the seconds of every run of each block of a network, where they were asked for, and `blocks_held` the
    bytes that were held when it was done. `needs` are the bytes that one output takes by itself beside the weights,
    with what it wears, as small ones of its kind had foretold it when it began; 0 where none had. `labels` are what
    stages are called in measurements where their names do not say it (`observe/labels.py`).
    """

    timings: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    blocks_held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    needs: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result(Spent):
    """What one prompt gave.

    `parts` has for every output its parts, the one that the model is there for first. For output types `"pt"` and
    `"latent"` it is empty, and `tensors` has what the pipeline made by medium: one tensor [n, ...] where all outputs
    have one shape, else a list, None in it for an output that does without; of `"pt"` pictures [n, 3, H, W], pictures
    in layers [n, L, 4, H, W] and videos [n, F, 3, H, W] in [0, 1], sounds [n, channels, samples] in [-1, 1]. `texts`
    says how much of each text every encoder read, `shown` in which sizes (width, height) the model was shown pictures
    beside what it drew, `written` in which tokens it wrote each text, `said` what was adjusted, and what a library that
    runs the pipeline warned of. `error` is set, and everything else empty, when this prompt failed.
    """

    request_id: str
    prompt: str
    params: DiffusionParams
    parts: tuple[tuple[Part, ...], ...] = ()
    tensors: Mapping[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    texts: tuple[TextRead, ...] = ()
    shown: tuple[tuple[int, int], ...] = ()
    written: tuple[TextWritten, ...] = ()
    said: tuple[str, ...] = ()
    error: OmnimuseError | None = None

    @property
    def images(self) -> list[Any]:
        """The pictures of all outputs."""
        return self._all("image")

    @property
    def videos(self) -> list[Any]:
        """The videos of all outputs."""
        return self._all("video")

    @property
    def audios(self) -> list[Any]:
        """The sounds of all outputs."""
        return self._all("audio")

    @property
    def texts_written(self) -> list[str]:
        """The texts of all outputs."""
        return self._all("text")

    @property
    def text(self) -> str:
        """The text of the first output; empty if there is none."""
        return next(iter(self.texts_written), "")

    @property
    def calls(self) -> list[tuple[Call, ...]]:
        """The calls of tools that each text asks for."""
        return [text.calls for text in self.written]

    def apart(self, begun: str) -> Result:
        """This result with the calls of tools taken out of its texts, every one of which has `begun` with that."""
        parts, taken = list(self.parts), list[Splitter]()
        for text in self.written:
            taken.append(taking := Splitter(f"{self.request_id}-{text.output}"))
            parts[text.output] = tuple(
                replace(part, data=taking.rest(begun + part.data)) if part.medium == "text" else part
                for part in parts[text.output]
            )
        written = tuple(replace(text, calls=tuple(each.calls)) for text, each in zip(self.written, taken, strict=True))
        lost = (LOST,) if any(each.lost for each in taken) else ()
        return replace(self, parts=tuple(parts), written=written, said=(*self.said, *lost))

    @property
    def output(self) -> Any:
        """What `tensors` has of the medium that the model is there for, or None."""
        return next(iter(self.tensors.values()), None)

    def _all(self, medium: str) -> list[Any]:
        return [part.data for parts in self.parts for part in parts if part.medium == medium]

    def _repr_png_(self) -> bytes | None:
        """The picture, for notebooks that show no HTML; None unless there is exactly one."""
        return self.images[0]._repr_png_() if len(self.images) == 1 else None

    def _repr_html_(self) -> str:
        """What a notebook shows of this result: its pictures, videos and sounds, with their seeds."""
        from base64 import b64encode  # only a notebook asks, and what starts everything stays light
        from html import escape

        if self.error is not None:
            return f"<p>{escape(self.prompt)}: {escape(str(self.error))}</p>"
        shown = [f'<img src="data:image/png;base64,{b64encode(image._repr_png_()).decode()}">' for image in self.images]
        shown += [made._repr_html_() for made in (*self.videos, *self.audios)]
        told = [f"seed {', '.join(map(str, self.seeds))}", *self.warnings]
        return "\n".join([*shown, f"<p>{escape(self.prompt)} ({escape('; '.join(told))})</p>"])

    @property
    def warnings(self) -> list[str]:
        """What a person should know although all went well, such as a prompt that was too long to be read whole."""
        return [*(text.warning for text in self.texts if text.left_out), *self.said]

    @property
    def prompt_tokens(self) -> int:
        """Tokens read of the prompt and the negative prompt: of each, by the encoder that read most of it."""
        most: dict[str, int] = {}
        for text in self.texts:
            if text.source not in ("prompt", "negative_prompt"):
                continue  # it was written here
            most[text.source] = max(most.get(text.source, 0), text.tokens)
        return sum(most.values())
