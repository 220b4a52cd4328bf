"""`vllm_omni.diffusion.models.interface`: what a pipeline says of itself by a base class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from omnimuse.compat.contract.names import no_name


class SupportImageInput:
    """It is shown pictures: they come in a prompt's `multi_modal_data`, under "image"."""

    support_image_input: ClassVar[bool] = True


class SupportAudioInput:
    """It is given sounds: they come in a prompt's `multi_modal_data`, under "audio"."""

    support_audio_input: ClassVar[bool] = True


class SupportAudioOutput:
    """Sound comes out of it."""

    support_audio_output: ClassVar[bool] = True


class SupportsComponentDiscovery:
    """It says which of its parts predict, read and decode. The engine finds blocks by what networks declare."""

    _dit_modules: ClassVar[Sequence[str]] = ()
    _encoder_modules: ClassVar[Sequence[str]] = ()
    _vae_modules: ClassVar[Sequence[str]] = ()
    _resident_modules: ClassVar[Sequence[str]] = ()


class SupportsStepExecution:
    """It has the four methods by which the engine owns its loop."""

    supports_step_execution: ClassVar[bool] = True


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
