"""Engines for pipelines of the plugin, and what they make of wishes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse import Config, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Done, Failed
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import PLUGIN, renamed
from tests.ranks import play


def config(folder: Path, arch: str, **parts: Any) -> Config:
    """The checkpoint in `folder` as one of `arch`, in company whenever there is some."""
    model = ModelConfig(str(renamed(folder, arch)), "float32", "cpu", plugins=(PLUGIN,))
    return Config(model, schedule=ScheduleConfig(strict_slots=True, company="always"), **parts)


@contextmanager
def running(chosen: Config) -> Iterator[Engine]:
    """An engine for the length of a `with` block."""
    engine = start(chosen)
    try:
        yield engine
    finally:
        engine.close()


def refusal(engine: Engine, wish: Wish, **changed: Any) -> str:
    """Why the engine does not draw that wish, with some parameters `changed`."""
    try:
        engine.submit(engine.make_request(Ask(wish.asked, replace(wish.params, **changed))))
        events = [event for _ in range(99) if not engine.idle for event in engine.tick()]
    except RequestError as refused:
        return str(refused)
    [failed] = [event for event in events if isinstance(event, Failed)]
    return str(failed.error)


def drawn(engine: Engine, wishes: Sequence[Wish], **changed: Any) -> list[Tensor]:
    """What the engine makes of those wishes, all at a time, with some parameters `changed`."""
    asks = [Ask(wish.asked, replace(wish.params, output_type="pt", **changed)) for wish in wishes]
    places = [engine.submit(engine.make_request(ask)) for ask in asks]
    found: dict[str, Tensor] = {}
    while not engine.idle:
        for event in engine.tick():
            assert not isinstance(event, Failed), event
            if isinstance(event, Done):
                [made] = event.result.tensors.values()
                found[event.request_id] = made[0]
    return [found[place] for place in places]


@cache
def named_in(path: Path) -> frozenset[str]:
    """What the functions in a file are called: many rows of a table name the same one."""
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def taken(module: ModuleType, owner: str) -> set[str]:
    """The names of the arguments that a class, a function or a method of `module` takes."""
    found: Any = module
    for part in owner.split("."):
        found = getattr(found, part)
    takes = signature(found).parameters
    own = {name for name, each in takes.items() if each.kind is not Parameter.VAR_KEYWORD}
    hints = get_type_hints(found.__init__ if isinstance(found, type) else found)
    for name, each in takes.items():
        if each.kind is Parameter.VAR_KEYWORD and (names := get_args(hints.get(name))):
            own |= names[0].__annotations__.keys()
    return own


def on_two_ranks(chosen: Config, wishes: Sequence[Wish], meeting: Path) -> tuple[list[Tensor], list[Tensor]]:
    """What an engine on two ranks makes of every wish alone, and then of all in company.

    The ranks meet at that path, in a folder that is free.
    """
    play(_on_rank, chosen, wishes, meeting, ranks=2)
    found = load_file(meeting.with_name("found"))
    alone, company = ([found[f"{how} {n}"] for n in range(len(wishes))] for how in ("alone", "company"))
    return alone, company


def _on_rank(rank: int, chosen: Config, wishes: Sequence[Wish], meeting: Path) -> None:
    """Rank 0 draws, and rank 1 follows it until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    with suppress(SystemExit), running(chosen) as engine:
        alone = [drawn(engine, [wish])[0] for wish in wishes]
        made = {"alone": alone, "company": drawn(engine, wishes) if len(wishes) > 1 else alone}
        assert not engine.runner.forwards.retries
        named = {f"{how} {n}": each.contiguous().clone() for how, found in made.items() for n, each in enumerate(found)}
        save_file(named, meeting.with_name("found"))
