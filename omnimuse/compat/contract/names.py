"""What is said of a name of the contract that is not here: why, and where the table of all names is."""

from __future__ import annotations

from importlib.util import find_spec

from omnimuse.compat.contract.table import REFUSED

TABLE = "docs/compat.md"
ROOT = "omnimuse.compat."


class UnknownNameError(ImportError):
    """A module of the contract has no such name here."""


class UnknownAttributeError(AttributeError):
    """An object of the contract has no such attribute here."""


def no_name(module: str, name: str) -> Exception:
    """What a module raises that is asked for a name which it has not, with the reason where it is refused."""
    if name.startswith("__") or _is_module(module, name):
        return AttributeError(name)  # Python itself asks for such
    where = module.removeprefix(ROOT)
    for row in REFUSED:
        if row.module == where and row.name in (name, "*"):
            return UnknownNameError(f"{where} has no {name!r} here: {row.why}; see {TABLE}")
    return UnknownNameError(f"{where} has no {name!r} here; {TABLE} lists every name of the contract and what it does")


def no_attribute(owner: object, name: str) -> UnknownAttributeError:
    """The same for an object."""
    return UnknownAttributeError(
        f"{type(owner).__name__} has no {name!r} here; {TABLE} lists every name of the contract and what it does"
    )


def _is_module(package: str, name: str) -> bool:
    try:
        return find_spec(f"{package}.{name}") is not None
    except ModuleNotFoundError:
        return False  # `package` is a module
