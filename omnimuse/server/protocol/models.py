"""The bodies of /v1/models: OpenAI's list, with a block of capabilities from which a user interface can be built."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, computed_field


class Capabilities(BaseModel):
    """What a model can be asked for. Sizes in pixels; `extra` are the family's own parameters and their defaults.

    At most `max_images` pictures may come with a prompt. `parameters` are those that are honoured; `fixed` those that
    take one value only. `qualities` are the steps behind each word of `quality`.
    """

    tasks: list[str]
    family: str
    size_multiple: int
    max_side: int
    max_frames: int
    frame_step: int
    max_prompt: int
    max_images: int
    max_outputs: int
    parameters: list[str]
    defaults: dict[str, Any]
    fixed: dict[str, Any]
    formats: list[str]
    qualities: dict[str, int]
    extra: dict[str, Any]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def takes_images(self) -> bool:
        """Whether a picture may come with a prompt."""
        return self.max_images > 0


class Model(BaseModel):
    """A model that this server serves."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "omnimuse"
    capabilities: Capabilities


class ModelList(BaseModel):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]
