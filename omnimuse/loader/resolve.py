"""Finds the folder of a model: bundled with omnimuse, on this disk, or on the Hugging Face hub.

First step of every start: called by the API, the command line and the server's front process. Looks at names and small
files only; no torch, and no network unless a hub id is not complete in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Literal

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import INDEX
from omnimuse.loader.files import SINGLE
from omnimuse.loader.hub import ID, Hub, is_model

BUNDLED = "omnimuse"
"""The owner in the ids of bundled models."""


@dataclass(frozen=True)
class Folder:
    """A model that was found: `id` as a person writes it, `path` of its files, where they came from."""

    id: str
    path: Path
    source: Literal["bundled", "local", "hub"]


@dataclass(frozen=True)
class Places:
    """Where models are looked for: the folder of bundled models, and the hub with its cache."""

    bundled: Path
    hub: Hub

    @staticmethod
    def standard() -> Places:
        """The installed package and the hub as configured on this machine."""
        return Places(Path(str(files("omnimuse"))) / "bundled", Hub.standard())


def resolve(model: str, known: Iterable[str] = (), places: Places | None = None) -> Folder:
    """The folder of `model`, which is a bundled id, a local folder, or a hub id `owner/name[@revision]`.

    In this order: the id of a bundled model, whatever is on disk; what exists on disk is a local folder; the rest is
    asked from the hub, whose cache comes first, but for ids of our own (`omnimuse/NAME`). `known` are ids to suggest
    when nothing is found (ModelError).
    """
    places = places or Places.standard()
    name = model.strip()
    path = Path(name).expanduser()
    bundled = {folder.id: folder for folder in _bundled(places)}
    if name in bundled:
        return bundled[name]
    if name and path.exists():
        return Folder(name.rstrip("/") or name, path.resolve(), "local")
    if path.suffix in SINGLE:
        raise ModelError(f"there is no file {name} on this machine; give the path of one that is there")
    if name.startswith(BUNDLED + "/"):
        raise ModelError(f"no model {name!r} is bundled with omnimuse. {_allowed(name, known, places)}")
    match = ID.fullmatch(name)
    if match is None or ".." in name:
        what = "is not a folder on this machine" if name.startswith(("/", ".", "~")) else "is not a model"
        raise ModelError(f"{model!r} {what}. {_allowed(name, known, places)}")
    try:
        return Folder(name, places.hub.get(match["repo"], match["revision"]), "hub")
    except ModelError as problem:
        near = _near(name, known, places)
        raise ModelError(f"{problem}{near}") from problem.__cause__


def list_local(places: Places | None = None) -> list[Folder]:
    """The models that are on this machine: bundled ones, then those in the hub's cache. Cheap."""
    places = places or Places.standard()
    found = _bundled(places)
    for repo in places.hub.cached_ids():
        snapshot = places.hub.cached(repo, None)
        if snapshot is not None and is_model(snapshot):
            found.append(Folder(repo, snapshot, "hub"))
    return found


def _bundled(places: Places) -> list[Folder]:
    indexes = sorted(places.bundled.glob(f"*/{INDEX}"))
    return [Folder(f"{BUNDLED}/{index.parent.name}", index.parent, "bundled") for index in indexes]


def _candidates(known: Iterable[str], places: Places) -> list[str]:
    bundled = [folder.id for folder in _bundled(places)]
    return list(dict.fromkeys([*bundled, *known, *places.hub.cached_ids()]))


def _near(name: str, known: Iterable[str], places: Places) -> str:
    """`. Did you mean ...?` with up to three ids whose whole or last part is close to `name`; empty if none is, or if
    `name` is known itself, and so spelled right.
    """
    known = list(known)
    if name.split("@")[0] in known:
        return ""
    ids = [candidate for candidate in _candidates(known, places) if candidate != name]
    whole = {candidate.lower(): candidate for candidate in ids}
    last = {candidate.split("/")[-1].lower(): candidate for candidate in ids}
    wanted = name.split("@")[0].lower().rstrip("/")
    close = [whole[match] for match in get_close_matches(wanted, whole, n=3)]
    close += [last[match] for match in get_close_matches(wanted.split("/")[-1], last, n=3)]
    unique = list(dict.fromkeys(close))[:3]
    return f". Did you mean {' or '.join(unique)}?" if unique else ""


def _allowed(name: str, known: Iterable[str], places: Places) -> str:
    bundled = ", ".join(folder.id for folder in _bundled(places)) or "none in this installation"
    near = _near(name, known, places).removeprefix(". ")
    return (
        (near + " " if near else "")
        + f"Use a bundled model ({bundled}), the path of a folder with {INDEX}, or a hub id owner/name[@revision]; "
        "`omnimuse models` lists what is on this machine"
    )
