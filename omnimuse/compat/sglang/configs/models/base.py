"""`sglang.multimodal_gen.configs.models.base`: what a component is built from.

What `config.json` says is in `arch_config`; a subclass declares what it reads of it, and the rest is there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.core.errors import ConfigError


@dataclass
class ArchConfig:
    """The architecture of a component, as its `config.json` has it; what no field is declared for lies in
    `extra_attrs` and is an attribute, too.
    """

    stacked_params_mapping: list[tuple[str, str, str]] = field(default_factory=list)
    extra_attrs: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        extra = vars(self).get("extra_attrs", {})
        if name not in extra:
            raise no_attribute(self, name)
        return extra[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).__dataclass_fields__:
            object.__setattr__(self, name, value)
        else:
            vars(self).setdefault("extra_attrs", {})[name] = value


@dataclass
class ModelConfig:
    """A component's architecture, whose attributes are its own, and what else is chosen for it."""

    arch_config: ArchConfig = field(default_factory=ArchConfig)

    def __getattr__(self, name: str) -> Any:
        if name == "arch_config" or name.startswith("__"):
            raise no_attribute(self, name)
        return getattr(self.arch_config, name)

    def update_model_arch(self, source_model_dict: Mapping[str, Any]) -> None:
        """Take what a `config.json` says; the architecture computes anew what it derives."""
        for name, value in source_model_dict.items():
            setattr(self.arch_config, name, value)
        if hasattr(type(self.arch_config), "__post_init__"):
            self.arch_config.__post_init__()

    def update_model_config(self, source_model_dict: Mapping[str, Any]) -> None:
        """Take choices besides the architecture; ConfigError for one that is no field."""
        known = {each.name for each in fields(self)} - {"arch_config"}
        for name, value in source_model_dict.items():
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no field {name!r}; use one of {', '.join(sorted(known))}")
            setattr(self, name, value)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
