"""`vllm.assets.base`: a sample that lies on a server of vLLM's, and is not fetched from there."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import TABLE, UnknownAttributeError, no_name


class Asset:
    """A sample by its name. It can be named; what would be in it is refused, with what to give instead."""

    what = "file"

    def __init__(self, name: str, **how: Any) -> None:
        self.name, self.how = name, how

    def __getattr__(self, name: str) -> Any:
        why = f"samples lie on a server of vLLM's, which is not asked: give the script a {self.what} of your own"
        raise UnknownAttributeError(f"{type(self).__name__}({self.name!r}).{name} is not here: {why} ({TABLE})")


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
