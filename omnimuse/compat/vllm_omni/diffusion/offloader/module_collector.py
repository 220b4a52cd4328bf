"""`vllm_omni.diffusion.offloader.module_collector`: which parts of a pipeline predict, read and decode."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsComponentDiscovery

log = logging.getLogger(__name__)

Parts = tuple[list[nn.Module], list[str]]


@dataclass
class PipelineModules:
    """Parts of each kind, and their names in the pipeline, in the same order."""

    dits: list[nn.Module]
    dit_names: list[str]
    encoders: list[nn.Module]
    encoder_names: list[str]
    vaes: list[nn.Module]
    vae_names: list[str] = field(default_factory=list)
    resident_modules: list[nn.Module] = field(default_factory=list)
    resident_names: list[str] = field(default_factory=list)


class ModuleDiscovery:
    """Finds them: by what a pipeline declares (SupportsComponentDiscovery), or by the names that parts usually have."""

    _FALLBACK_DIT_ATTRS = (
        "transformer",
        "transformer_2",
        "dit",
        "sr_dit",
        "language_model",
        "transformer_blocks",
        "model",
    )
    _FALLBACK_ENCODER_ATTRS = (
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("image_encoder", "vision_encoder", "mllm"),
    )
    _FALLBACK_VAE_ATTRS = ("vae", "audio_vae", "sound_tokenizer")

    @staticmethod
    def discover(pipeline: nn.Module) -> PipelineModules:
        """The parts of `pipeline`; a name that is declared and not there is told in the log."""
        if isinstance(pipeline, SupportsComponentDiscovery):
            said = pipeline._dit_modules, pipeline._encoder_modules, pipeline._vae_modules, pipeline._resident_modules
        else:
            usual = ModuleDiscovery
            said = usual._FALLBACK_DIT_ATTRS, usual._FALLBACK_ENCODER_ATTRS, usual._FALLBACK_VAE_ATTRS, ()
        declared = isinstance(pipeline, SupportsComponentDiscovery)
        dits, encoders, vaes, rest = (_parts(pipeline, names, declared) for names in said)
        return PipelineModules(*dits, *encoders, *vaes, *rest)


def _parts(pipeline: nn.Module, names: Iterable[str], declared: bool) -> Parts:
    """Those of `names` that are modules of it, each once, and under which name."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for name in names:
        try:
            part = attrgetter(name)(pipeline)
        except AttributeError:
            part = None
        if isinstance(part, nn.Module):
            found.setdefault(id(part), (part, name))
        elif declared or part is not None:
            log.warning("%s says that %s is a part of it, and it is none", type(pipeline).__name__, name)
    return [part for part, _ in found.values()], [name for _, name in found.values()]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
