"""What is said of a name of the contract that is not here: why, and where the table of all names is."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from dis import opname
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location

from omnimuse.compat.contract.settings import METHODS
from omnimuse.compat.contract.table import NAMES
from omnimuse.core.names import meant

TABLE = "docs/compat.md"
ROOT = "omnimuse.compat."
ROOTS = ("vllm_omni", "vllm", "sglang")
MANY = (
    re.compile(r"(vllm_omni\.diffusion\.distributed\.autoencoders\.autoencoder_kl)_\w+()"),
    re.compile(r"(vllm_omni\.diffusion\.layers\.)\w+_(select01_modulation)"),
)
"""Modules that published files know under the names of many families; each is one here, of what is in the groups."""


class UnknownNameError(ImportError):
    """A module of the contract has no such name here."""


class UnknownAttributeError(AttributeError):
    """An object or a module of the contract has no such attribute here."""


def no_name(module: str, name: str) -> Exception:
    """What a module raises that is asked for a name which it has not, with the reason where it is refused."""
    if name.startswith("__") or is_module(module, name):
        return AttributeError(name)  # Python itself asks for such
    where = module.removeprefix(ROOT)
    why = NAMES.why(where, name)
    return unknown(f"{where} has no {name!r} here{why}; {TABLE} lists every name of the contract and what it does")


def unknown(said: str) -> ImportError | AttributeError:
    """What `__getattr__` of a module raises with these words: an ImportError to who wrote `from module import name`, as
    Python drops the words of any other; an AttributeError to all else, since some ask each module that is loaded
    whether it has a name (pickling does, and so the compiler), and mean no harm.
    """
    asks = sys._getframe(1)
    while asks.f_back and (asks.f_code.co_name == "__getattr__" or asks.f_back.f_code.co_name == "__getattr__"):
        asks = asks.f_back
    imports = opname[asks.f_code.co_code[asks.f_lasti]] == "IMPORT_FROM"
    return UnknownNameError(said) if imports else UnknownAttributeError(said)


def no_attribute(owner: object, name: str) -> UnknownAttributeError:
    """The same for an object."""
    kind = type(owner).__name__
    why = next((f": {row.does}" for row in METHODS if row.refused and (kind, row.name) == ("Omni", name)), "")
    return UnknownAttributeError(
        f"{kind} has no {name!r} here{why}; {TABLE} lists every name of the contract and what it does"
    )


class UnknownArgumentError(TypeError):
    """A class of the contract takes no such argument here."""


def no_argument(owner: type, name: str, taken: Collection[str]) -> UnknownArgumentError:
    """What a class raises that is made with `name` where it has only those `taken`, with the one that was meant."""
    near = meant(name, taken)
    hint = f"did you mean {near!r}? " if near else ""
    return UnknownArgumentError(
        f"{owner.__name__} takes no {name!r} here; {hint}{TABLE} lists every name of the contract"
    )


class UnknownModuleError(ModuleNotFoundError):
    """The contract has no such module here."""


class Unfound(MetaPathFinder):
    """Asked last for a module: of one of the contract, which nobody has found, it says where the table of names is.

    What is there under many names, it finds.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """The spec of a module that is there under many names; UnknownModuleError for any other of the contract."""
        for many in MANY:
            if (found := many.fullmatch(fullname.removeprefix(ROOT))) is not None:
                same = find_spec(ROOT + "".join(found.groups()))
                return spec_from_file_location(fullname, same.origin) if same and same.origin else None
        if fullname.startswith(tuple(f"{ROOT}{root}." for root in ROOTS)):
            where = fullname.removeprefix(ROOT)
            raise UnknownModuleError(
                f"there is no {where} here{NAMES.why(where)}; {TABLE} lists every name of the contract", name=fullname
            )
        return None


def tell_of_modules() -> None:
    """From now on an import of a module that the contract has not says so, and where the table is."""
    if not any(isinstance(finder, Unfound) for finder in sys.meta_path):
        sys.meta_path.append(Unfound())


def is_module(package: str, name: str) -> bool:
    """Whether `name` is a module of `package`."""
    try:
        return find_spec(f"{package}.{name}") is not None
    except ModuleNotFoundError:
        return False  # nobody has it, or `package` is a module
