"""`vllm_omni.diffusion.config`: the configuration that parts of a network ask for while they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig


@contextmanager
def set_current_diffusion_config(config: OmniDiffusionConfig) -> Iterator[None]:
    """For the length of a `with` block, this is it."""
    around = here("set_current_diffusion_config")
    before, around.config = around.config, config
    try:
        yield
    finally:
        around.config = before


def get_current_diffusion_config() -> OmniDiffusionConfig:
    """That of the pipeline that is made, or runs."""
    found: OmniDiffusionConfig = here("get_current_diffusion_config").config
    return found


def get_current_diffusion_config_or_none() -> OmniDiffusionConfig | None:
    """The same; None outside of an engine."""
    return get_current_diffusion_config() if inside() else None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
