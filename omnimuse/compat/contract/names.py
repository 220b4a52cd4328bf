"""What is said of a name of the contract that is not here: where the table of all names is."""

from __future__ import annotations

TABLE = "docs/compat.md"


class UnknownNameError(ImportError):
    """A module of the contract has no such name here."""


class UnknownAttributeError(AttributeError):
    """An object of the contract has no such attribute here."""


def no_name(module: str, name: str) -> Exception:
    """What a module raises that is asked for a name which it has not; the table says which there are, and why not."""
    if name.startswith("__"):
        return AttributeError(name)  # Python itself asks for such
    where = module.removeprefix("omnimuse.compat.")
    return UnknownNameError(f"{where} has no {name!r} here; {TABLE} lists every name of the contract and what it does")


def no_attribute(owner: object, name: str) -> UnknownAttributeError:
    """The same for an object."""
    return UnknownAttributeError(
        f"{type(owner).__name__} has no {name!r} here; {TABLE} lists every name of the contract and what it does"
    )
