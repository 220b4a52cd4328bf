"""Who was registered: pipelines written to the contract, by the architecture that a checkpoint names. No torch.

A plugin is a package that registers its pipelines when it is imported, or that has the contract's own tables
(`_DIFFUSION_MODELS` and the two of functions) in its `registry.py`,
or modules with an `EntryClass` (`composed/discover.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omnimuse.compat.composed.discover import pipelines
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plugins import FAMILIES, brought

TASKS = (
    *("text-to-image", "image-to-image", "text-to-video", "image-to-video"),
    *("text-to-audio", "audio-to-audio"),
)


@dataclass(frozen=True)
class Entry:
    """One pipeline: the module and the name of its class, and of the functions before and after it, if there are any.

    `tasks` empty: they are told from the class. A `size_multiple` of 0 is told from the checkpoint. One that is
    composed of stages, as another guide has it, names the `package` whose source says the rest.
    """

    arch: str
    module: str
    name: str
    pre_process: str = ""
    post_process: str = ""
    tasks: tuple[str, ...] = ()
    size_multiple: int = 0
    package: str = ""

    def of(self, plugin: str) -> bool:
        """Whether it comes with that package."""
        return self.module == plugin or self.module.startswith(f"{plugin}.")

    def imported(self, name: str) -> Any:
        """What the module has under `name`; ModelError where it has not. Imports torch."""
        try:
            return getattr(import_module(self.module), name)
        except AttributeError as problem:
            why = f"{self.module} has no {name!r}, which is registered for {self.arch}; correct the line that registers"
            raise ModelError(f"{why} it, or the module") from problem


ENTRIES: dict[str, Entry] = {}
"""By architecture; filled by `register` while plugins are imported."""


def register(entry: Entry) -> None:
    """Add a pipeline; ConfigError where another one has its architecture."""
    known = ENTRIES.get(entry.arch, entry)
    if (known.module, known.name) != (entry.module, entry.name):
        raise ConfigError(
            f"{entry.arch} is registered twice, for {known.module}:{known.name} and {entry.module}:{entry.name}; "
            "give one of them another name in its checkpoint's model_index.json"
        )
    for task in entry.tasks:
        if task not in TASKS:
            raise ConfigError(f"task={task!r} of {entry.arch} is not known; use one of {', '.join(TASKS)}")
    ENTRIES[entry.arch] = entry


def register_tables(
    package: str, models: Mapping[str, Sequence[str]], before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    """Add what the contract's tables name: architecture -> (folder, file, class), and of functions in that file."""
    for arch, row in models.items():
        if len(row) != 3:
            raise ConfigError(f"_DIFFUSION_MODELS[{arch!r}] of {package} is {row!r}; write (folder, file, class)")
        folder, file, name = row
        module = ".".join(part for part in (package, folder, file) if part)
        register(Entry(arch, module, name, before.get(arch, ""), after.get(arch, "")))


def load(plugins: Sequence[str]) -> None:
    """Import `plugins`, and register what their tables name; ConfigError for one that is not there."""
    for plugin in plugins:
        _import(plugin)
        for arch, module, name in pipelines(plugin):
            register(Entry(arch, module, name, package=plugin))
        if _has_tables(plugin):
            tables = vars(import_module(f"{plugin}.registry"))
            if models := tables.get("_DIFFUSION_MODELS"):
                before, after = (tables.get(f"_DIFFUSION_{when}_PROCESS_FUNCS", {}) for when in ("PRE", "POST"))
                register_tables(plugin, models, before, after)
        if not any(entry.of(plugin) for entry in ENTRIES.values()):
            raise ConfigError(
                f"plugin {plugin} registers no pipeline of its own; call omnimuse.compat.vllm_omni.register in it, or "
                "give it a registry.py with _DIFFUSION_MODELS, or a module with an EntryClass"
            )


def installed() -> tuple[str, ...]:
    """The packages that name themselves in the group of entry points."""
    return tuple(point.value.partition(":")[0] for point in brought(FAMILIES).values())


def entry_of(arch: str, plugins: Sequence[str] | None = None) -> Entry | None:
    """Who has that architecture, of `plugins` alone if they are given; None where nobody does."""
    entry = ENTRIES.get(arch)
    if entry is not None and plugins is not None and not any(entry.of(plugin) for plugin in plugins):
        return None
    return entry


def _has_tables(plugin: str) -> bool:
    """Whether its `registry.py` has the contract's tables; one that has not may import anything."""
    spec = find_spec(f"{plugin}.registry")
    return spec is not None and "_DIFFUSION_MODELS" in Path(str(spec.origin)).read_text(encoding="utf-8")


def _import(plugin: str) -> None:
    if not all(part.isidentifier() for part in plugin.split(".")):
        raise ConfigError(f"plugin {plugin!r} is no name of a package; write it as it is imported, such as my_package")
    try:
        import_module(plugin)
    except ModuleNotFoundError as problem:
        if problem.name is None or not plugin.startswith(problem.name):
            raise ConfigError(f"plugin {plugin} needs more than is here: {problem}; install it") from problem
        raise ConfigError(
            f"plugin {plugin} cannot be imported ({problem}); install its package, or put its folder on PYTHONPATH"
        ) from problem
