"""What stands in a network of the contract in the place of one of its parts, and is called as that part is.

The network calls it with whatever arguments it has, reads the attributes that it expects, and notices nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from inspect import BoundArguments, Signature, signature
from operator import attrgetter
from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name


class StandIn(nn.Module):
    """In the place of `inner`: calls of it go to `called`, and what else is asked of it is asked of `inner`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.takes: Signature = inner.takes if isinstance(inner, StandIn) else signature(inner.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.called(self.takes.bind(*args, **kwargs))

    @abstractmethod
    def called(self, given: BoundArguments) -> Any:
        """What the call gives."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_modules", {})
        if name in own or name in self.__dict__.get("_parameters", {}) or "inner" not in own:
            return super().__getattr__(name)
        return getattr(own["inner"], name)


def call_instead(network: nn.Module, called: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Calls of `network`, which stays where it is, go to `called(args, kwargs)`."""
    own = network.forward

    @wraps(own)  # whoever asks what it takes is told the same
    def forward(*args: Any, **kwargs: Any) -> Any:
        return called(args, kwargs)

    network.forward = forward


def call_behind(part: nn.Module, method: str, first: Callable[[], Any]) -> None:
    """Whenever that method of `part` is called, `first` is."""
    own = attrgetter(method)(part)

    @wraps(own)
    def called(*args: Any, **kwargs: Any) -> Any:
        first()
        return own(*args, **kwargs)

    setattr(part, method, called)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
