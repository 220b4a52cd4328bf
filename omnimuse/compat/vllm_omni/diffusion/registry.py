"""`vllm_omni.diffusion.registry`: the tables of pipelines, and a public way to add to them.

The guide has people write their lines into these tables. Here a package has tables of its own in its `registry.py`, or
calls `register` when it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnimuse.compat.contract import entries
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.names import no_name

__all__ = ["register"]


def register(
    arch: str,
    module: str,
    class_name: str = "",
    *,
    pre_process: str = "",
    post_process: str = "",
    tasks: str | Sequence[str] = (),
    size_multiple: int = 0,
) -> None:
    """Add the pipeline `class_name` (left out: `arch`) of `module`, for checkpoints whose `_class_name` is `arch`.

    `pre_process` and `post_process` are the functions of that module which make the functions before and after it.
    `tasks` are what it does, the main one first; left out, they are told from the class.
    """
    named = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    entries.register(Entry(arch, module, class_name or arch, pre_process, post_process, named, size_multiple))


def __getattr__(name: str) -> Any:
    """The tables as they are now, to be read."""
    known = entries.ENTRIES.values()
    if name == "_DIFFUSION_MODELS":
        return {each.arch: (*each.module.rsplit(".", 2)[-2:], each.name) for each in known}
    if name == "_DIFFUSION_PRE_PROCESS_FUNCS":
        return {each.arch: each.pre_process for each in known if each.pre_process}
    if name == "_DIFFUSION_POST_PROCESS_FUNCS":
        return {each.arch: each.post_process for each in known if each.post_process}
    raise no_name(__name__, name)
