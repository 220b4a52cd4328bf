"""The library's own pipeline over components that our loader has read: made anew for every output.

Pipelines of the library keep the choices of a call in themselves, and their schedulers where they are in it, so calls
that take turns must not share them. Networks and tokenizers are shared.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn
from tqdm import tqdm

from omnimuse.compat.diffusers.call import inside, park, running
from omnimuse.core.errors import ModelError
from omnimuse.core.spec import OPTIONS, Configs
from omnimuse.loader.components import quiet


def pipeline_class(arch: str) -> Any:
    """The class `arch` of diffusers, with a progress bar that parks the call instead of drawing."""
    with quiet("diffusers"):
        library = import_module("diffusers")
        found = (
            getattr(library, arch) if hasattr(library, arch) else getattr(import_module("diffusers.pipelines"), arch)
        )
    return type(arch, (found,), {"progress_bar": _progress_bar, "__module__": found.__module__})


def make_pipeline(cls: Any, components: Mapping[str, Any], configs: Configs) -> Any:
    """A pipeline of class `cls` over `components`, with its own copies of what keeps the state of a call.

    As in the library's `from_pretrained`, a class that has a default for a component, and does not list it as optional,
    is not given the checkpoint's: LongCat's pipeline of sound always makes its scheduler itself.
    """
    given: dict[str, Any] = {}
    for name, parameter in signature(cls.__init__).parameters.items():
        if name in components and (parameter.default is parameter.empty or name in cls._optional_components):
            given[name] = own(components[name])
        elif name in configs[OPTIONS]:
            given[name] = configs[OPTIONS][name]
        elif parameter.default is parameter.empty and name != "self":
            given[name] = None  # optional, and this checkpoint lists it as null
    try:
        with quiet("diffusers"):
            return cls(**given)
    except (ImportError, ValueError, TypeError) as problem:
        raise ModelError(f"diffusers cannot make a {cls.__name__} of this checkpoint: {problem}") from problem


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the library warns of meanwhile, such as a prompt that it cuts; it prints nothing itself."""
    said: list[str] = []
    handler = _Heard(said)
    logger = logging.getLogger("diffusers")
    with quiet("diffusers"), quiet("transformers"):
        kept, logger.handlers = logger.handlers, [handler]
        logger.setLevel(logging.WARNING)
        try:
            yield said
        finally:
            logger.handlers = kept


class _Heard(logging.Handler):
    """Keeps messages in a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Called by the logger."""
        self._said.append(record.getMessage())


def own(component: Any) -> Any:
    """A copy of a scheduler or a guider, which remember where in a call they are; everything else itself."""
    from diffusers.configuration_utils import ConfigMixin

    stateful = isinstance(component, ConfigMixin) and not isinstance(component, nn.Module)
    return copy.deepcopy(component) if stateful else component


class Bar(tqdm):
    """What the library takes for its progress bar. It shows nothing, and says how many steps there will be.

    Where the pipeline `parks` in no callback, it parks where the bar would grow.
    """

    def __init__(self, iterable: Any, total: int | None, parks: bool) -> None:
        super().__init__(iterable, total=total, disable=True)
        self.expected = total or (len(iterable) if hasattr(iterable, "__len__") else 0)
        self.parks = parks
        running().total = self.expected

    def update(self, n: float | None = 1) -> None:
        """A step is done."""
        if self.parks:
            park(None, self.expected)

    def __iter__(self) -> Any:
        for item in self.iterable:
            yield item
            self.update()


def bar(iterable: Any = None, total: int | None = None) -> tqdm:
    """A bar that shows nothing, and that parks the call inside which it is made, if it is in one."""
    return Bar(iterable, total, parks=True) if inside() else tqdm(iterable, total=total, disable=True)


def _progress_bar(pipeline: Any, iterable: Any = None, total: int | None = None) -> Bar:
    parameters = signature(type(pipeline).__call__).parameters
    return Bar(iterable, total, parks=not {"callback_on_step_end", "callback"} & parameters.keys())
