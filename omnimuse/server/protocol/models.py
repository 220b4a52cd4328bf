"""The bodies of /v1/models: OpenAI's list, with a block of capabilities from which a user interface can be built."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, computed_field


class Given(BaseModel):
    """What may come with a prompt: from `min_images` to `max_images` pictures, from `min_videos` to `max_videos`
    videos, at most `max_sounds` sounds. If it `masks`, a model can draw a part of a picture anew, if it `masks_videos`,
    of a video; if it `fills`, it does nothing else.
    """

    min_images: int
    max_images: int
    masks: bool = False
    fills: bool = False
    max_sounds: int = 0
    min_videos: int = 0
    max_videos: int = 0
    masks_videos: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def takes_images(self) -> bool:
        """Whether a picture may come with a prompt."""
        return self.max_images > 0


class Bounds(Given):
    """How much a model can be asked for. Sizes in pixels. A `max_prompt` of 0: it reads no text. Sound has
    `sample_rate` samples a second, at most `max_seconds` (0: no bound is known).
    """

    size_multiple: int
    max_side: int
    min_frames: int
    max_frames: int
    frame_step: int
    max_prompt: int
    max_outputs: int
    max_seconds: float = 0.0
    sample_rate: int | None = None


class Capabilities(Bounds):
    """What a model can be asked for; `extra` are the family's own parameters and their defaults, without those that a
    checkpoint leaves no choice of.

    `parameters` are those that are honoured; `fixed` those that take one value only. `qualities` are the steps behind
    each word of `quality`, `adapters` what can be worn, `caches` the names of step caches; one that is among the
    `defaults` is the server's choice. A model that runs through a `library` has `notes` on what that means. A model
    that says what it learned has its words by topic in `draws`, and in `only_side` the one side in pixels of what it
    was shown. Of those of `extra` that are one of a few words, `choices` has them, and `needs` names those without
    which nothing is made. `takes` and `gives` are the media of what may come with a request and of what comes of it;
    one that `calls` may ask for tools.
    """

    medium: str
    takes: list[str] = []
    gives: list[str] = []
    calls: bool = False
    tasks: list[str]
    family: str
    parameters: list[str]
    defaults: dict[str, Any]
    fixed: dict[str, Any]
    formats: list[str]
    qualities: dict[str, int]
    extra: dict[str, Any]
    adapters: list[str]
    caches: list[str] = []
    choices: dict[str, list[str]] = {}
    needs: list[str] = []
    library: str
    notes: dict[str, str]
    draws: dict[str, list[str]]
    only_side: int | None


class Model(BaseModel):
    """A model that this server serves. `task_type` is T2I, I2I, T2V, I2V or T2A; `dtypes` is by component.

    `max_model_len` is of a model that writes: the tokens that it reads and writes in all.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "omnimuse"
    task_type: str
    dtypes: dict[str, str]
    capabilities: Capabilities
    max_model_len: int | None = None


class ModelList(BaseModel):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]
