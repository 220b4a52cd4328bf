"""What is said of a name of SGLang's guide that is not here: why, and where the table of all names is."""

from __future__ import annotations

from omnimuse.compat.composed.table import NAMES, ROOT
from omnimuse.compat.contract.names import TABLE, UnknownAttributeError, is_module, unknown

HERE = "omnimuse.compat.sglang"


def no_name(module: str, name: str) -> Exception:
    """What a module raises that is asked for a name which it has not, with the reason where it is refused."""
    if name.startswith("__") or is_module(module, name):
        return AttributeError(name)  # Python itself asks for such
    where = ROOT + module.removeprefix(HERE)
    why = NAMES.why(where, name)
    return unknown(f"{where} has no {name!r} here{why}; {TABLE} lists every name of the guide and what it does")


def no_attribute(owner: object, name: str) -> UnknownAttributeError:
    """The same for an object."""
    return UnknownAttributeError(
        f"{type(owner).__name__} has no {name!r} here; {TABLE} lists every name of the guide and what it does"
    )
