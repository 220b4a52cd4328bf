"""`vllm_omni.outputs`: what scripts get for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.output import Result


@dataclass(frozen=True)
class OmniRequestOutput:
    """One prompt's result, in both shapes that scripts know: `outputs[0]`, and `request_output[0].images`."""

    result: Result

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
        """Always: nothing is told before."""
        return True

    @property
    def error(self) -> OmnimuseError | None:
        """Why there is nothing, if there is nothing."""
        return self.result.error

    @property
    def images(self) -> list[Any]:
        """All pictures."""
        return self.result.images

    @property
    def outputs(self) -> list[Any]:
        """What the model is there for, of all outputs: pictures, videos or sounds."""
        return [parts[0].data for parts in self.result.parts]

    @property
    def final_output_type(self) -> str:
        """The medium of `outputs`."""
        return self.result.parts[0][0].medium if self.result.parts else ""

    @property
    def multimodal_output(self) -> dict[str, list[Any]]:
        """Everything by medium."""
        found = {"image": self.result.images, "video": self.result.videos, "audio": self.result.audios}
        return {medium: made for medium, made in found.items() if made}

    @property
    def request_output(self) -> list[OmniRequestOutput]:
        """Itself, in a list."""
        return [self]

    @property
    def stage_durations(self) -> dict[str, float]:
        """Seconds by stage."""
        return dict(self.result.timings)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
