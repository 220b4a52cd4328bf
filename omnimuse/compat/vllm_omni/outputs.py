"""`vllm_omni.outputs`: what scripts get for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.output import Result


@dataclass(frozen=True)
class CompletionOutput:
    """What one stage made of a prompt, number `index` of several: its `text`, or its sound under "audio" in
    `multimodal_output` (float32 [n], or [channels, n] of several) with "sr" samples a second. While it is made there is
    what came until then, of a sound in a list of pieces, and no `finish_reason` yet. A text has all its `token_ids`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    multimodal_output: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


@dataclass(frozen=True)
class RequestOutput:
    """All that one stage made of a prompt; `multimodal_output` is that of the first."""

    request_id: str
    prompt: str
    outputs: list[CompletionOutput]
    images: list[Any]
    finished: bool = True

    @property
    def multimodal_output(self) -> dict[str, Any]:
        """That of the first."""
        return self.outputs[0].multimodal_output

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


class Single(list[Any]):
    """A list of one that has the attributes of that: scripts go through it, or ask it themselves."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self[0], name)


@dataclass(frozen=True)
class OmniRequestOutput:
    """One prompt's result, in both shapes that scripts know: `outputs[0]`, and `request_output[0].images`. Where it has
    failed, asking for what was made raises its `error`.

    Of a model that writes or speaks it is what stage number `stage_id` made, of `medium`; while it is made, what is
    `told` until then.
    """

    result: Result
    stage_id: int = 0
    medium: str = ""
    told: RequestOutput | None = None

    @property
    def request_id(self) -> str:
        """Which request it was."""
        return self.result.request_id

    @property
    def prompt(self) -> str:
        """The prompt."""
        return self.result.prompt

    @property
    def finished(self) -> bool:
        """Whether nothing more comes of this stage."""
        return self.told is None

    @property
    def error(self) -> OmnimuseError | None:
        """Why there is nothing, if there is nothing."""
        return self.result.error

    @property
    def images(self) -> list[Any]:
        """All pictures."""
        return self._made.images

    @property
    def outputs(self) -> list[Any]:
        """What the model is there for, of all outputs: pictures, videos or sounds; of a stage, what it made."""
        if self.medium:
            return self._of_stage.outputs
        return [parts[0].data for parts in self._made.parts]

    @property
    def final_output_type(self) -> str:
        """The medium of `outputs`."""
        return self.medium or (self.result.parts[0][0].medium if self.result.parts else "")

    @property
    def multimodal_output(self) -> dict[str, Any]:
        """Everything by medium; of a stage, what its first output is."""
        if self.medium:
            return self._of_stage.multimodal_output
        found = {"image": self._made.images, "video": self._made.videos, "audio": self._made.audios}
        return {medium: made for medium, made in found.items() if made}

    @property
    def request_output(self) -> Any:
        """Itself, or of a stage what it made: a list of one that has the attributes of that."""
        return Single([self._of_stage if self.medium else self])

    @property
    def _made(self) -> Result:
        if self.result.error is not None:
            raise self.result.error
        return self.result

    @property
    def _of_stage(self) -> RequestOutput:
        if self.told is not None:
            return self.told
        result = self.result
        made = [part.data for parts in result.parts for part in parts if part.medium == self.medium]
        written = {note.output: note for note in result.written}
        found = []
        for index, data in enumerate(made):
            note = written.get(index)
            text = data if self.medium == "text" else ""
            tokens, reason = (note.tokens, note.reason) if note is not None and text else ((), "stop")
            found.append(CompletionOutput(index, text, tokens, reason, _media(self.medium, data)))
        return RequestOutput(result.request_id, result.prompt, found, made if self.medium == "image" else [])

    @property
    def stage_durations(self) -> dict[str, float]:
        """Seconds by stage."""
        return dict(self.result.timings)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def _media(medium: str, data: Any) -> dict[str, Any]:
    """What a part that is no text is, by its medium."""
    if medium == "text":
        return {}
    if medium != "audio":
        return {medium: data}
    wave = torch.from_numpy(data.samples)
    return {"audio": wave[0] if len(wave) == 1 else wave, "sr": data.rate}


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
