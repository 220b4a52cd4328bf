"""`vllm.model_executor.models.utils`: weights by name into a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.core.errors import ModelError

Weights = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class WeightsMapper:
    """New names for weights: parts, beginnings and ends of them. One that becomes None is left out."""

    orig_to_new_substr: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)

    def apply(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The weights under their new names."""
        for name, tensor in weights:
            if (new := self.name(name)) is not None:
                yield new, tensor

    def name(self, name: str) -> str | None:
        """What `name` becomes."""
        for old, new in self.orig_to_new_substr.items():
            if old in name:
                if new is None:
                    return None
                name = name.replace(old, new, 1)
        for old, new in self.orig_to_new_prefix.items():
            if name.startswith(old):
                if new is None:
                    return None
                name = new + name.removeprefix(old)
        for old, new in self.orig_to_new_suffix.items():
            if name.endswith(old):
                if new is None:
                    return None
                name = name.removesuffix(old) + new
        return name


class AutoWeightsLoader:
    """Gives weights to a module by their names: a part that has a `load_weights` of its own gets all of its own.

    Names that begin with one of `skip_prefixes`, or hold one of `skip_substrs`, are passed over, and those that do so
    with the `ignore_unexpected` ones may be nobody's.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        skip_prefixes: Sequence[str] = (),
        skip_substrs: Sequence[str] = (),
        ignore_unexpected_prefixes: Sequence[str] = (),
        ignore_unexpected_suffixes: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.skip_prefixes = tuple(skip_prefixes)
        self.skip_substrs = tuple(skip_substrs)
        self.lost = (tuple(ignore_unexpected_prefixes), tuple(ignore_unexpected_suffixes))

    def load_weights(self, weights: Weights, *, mapper: WeightsMapper | None = None) -> set[str]:
        """Fill the module; the names of what was filled. ModelError for a weight that is nobody's."""
        named = weights if mapper is None else mapper.apply(weights)
        wanted = ((name, tensor) for name, tensor in named if not self._skipped(name))
        return set(self._fill("", self.module, wanted))

    def _skipped(self, name: str) -> bool:
        return name.startswith(self.skip_prefixes) or any(part in name for part in self.skip_substrs)

    def _fill(self, path: str, module: nn.Module, weights: Weights) -> Iterator[str]:
        if module is not self.module and hasattr(module, "load_weights"):
            load_own: Any = module.load_weights
            yield from (path + name for name in load_own(weights) or ())
            return
        children, tensors = dict(module.named_children()), _tensors(module)
        for first, group in groupby(weights, key=lambda each: each[0].partition(".")[0]):
            inner = ((name.partition(".")[2], tensor) for name, tensor in group)
            if first in children:
                yield from self._fill(f"{path}{first}.", children[first], inner)
                continue
            for rest, tensor in inner:
                name = path + (f"{first}.{rest}" if rest else first)
                if first in tensors and not rest:
                    load = vars(tensors[first]).get("weight_loader", default_weight_loader)
                    load(tensors[first], tensor)
                    yield name
                elif not name.startswith(self.lost[0]) and not name.endswith(self.lost[1]):
                    kind = type(self.module).__name__
                    raise ModelError(f"{kind} has no parameter {name!r}, which its checkpoint has; rename or skip it")


def maybe_prefix(prefix: str, name: str) -> str:
    """The name of a part below `prefix`, if there is one."""
    return f"{prefix}.{name}" if prefix else name


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
