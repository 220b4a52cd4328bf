"""The adapters that clients may name: files of one folder that the operator chose, registered by name.

At the start every file in the folder is registered by its name; more names come and go while the server runs. Some may
be set for all requests that do not say what they wear. Whether an adapter fits the model the workers find out, who read
it when it is set, or when a request first names it. No torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.loras import Lora, loras_of
from omnimuse.loader.adapter_file import find_file

MOST = 1000
LONGEST = 256
TryOn = Callable[[Sequence[Lora]], Awaitable[None]]
"""(adapters by their files) -> whether requests can wear them, as they would; RequestError tells why not."""


class Shelf:
    """Names of adapters -> files in `folder`, by what they are called there. Without a folder there are none.

    `chosen` were set for everybody, by name; `worn` is what requests wear of them now: all, or nothing. The model has
    these `networks`, where that is known here.
    """

    def __init__(self, folder: Path | None, networks: Collection[str] = ()) -> None:
        self.folder = folder
        self.networks = networks
        there = [] if folder is None else sorted(folder.glob("*.safetensors"))
        if len(there) > MOST:
            raise ConfigError(f"--lora-dir {folder} has {len(there)} adapters, and there may be {MOST}; move some away")
        self.files: dict[str, str] = {file.stem: file.name for file in there}
        for name in self.files:
            if not _can_be_said(name):
                raise ConfigError(f"--lora-dir {folder} has {name!r:.80}, a name that no request can say; rename it")
        self.chosen: tuple[Lora, ...] = ()
        self.worn: list[Lora] = []
        self._changing = asyncio.Lock()

    def load(self, name: str, path: str) -> None:
        """Register `path`, a file or folder in the folder of adapters, as `name`; RequestError says what is wrong."""
        self.files[name] = self._checked(name, path, self.files)

    def _checked(self, name: str, path: str, files: Mapping[str, str]) -> str:
        """What `path` is called in the folder, if it can be called `name` beside these `files`; else RequestError."""
        if self.folder is None:
            raise RequestError("no adapter can be loaded: the server was started without --lora-dir", "lora_path")
        if not _can_be_said(name) or ":" in name:
            why = f"use 1 to {LONGEST} characters that can be seen, and no colon"
            raise RequestError(f"lora_name={name!r:.80} is no name for an adapter; {why}", "lora_name")
        inside = path.removeprefix(f"{self.folder}/")
        if not inside:
            raise RequestError(f"lora_path={path!r} names no file in the folder of adapters", "lora_path")
        try:
            find_file(inside, self.folder)
        except RequestError as error:
            raise RequestError(str(error), "lora_path") from None
        if files.get(name, inside) != inside:
            raise RequestError(f"lora_name={name!r} is taken by another file; unload it first", "lora_name")
        if len(files) >= MOST and name not in files:
            raise RequestError(f"{MOST} adapters are registered; unload one first", "lora_name")
        return inside

    def unload(self, name: str) -> None:
        """Forget `name`: requests that come can no longer wear it, those in progress do."""
        if self.files.pop(name, None) is None:
            raise RequestError(f"there is no adapter {name!r:.80} to unload", "lora_name")
        self.chosen = tuple(lora for lora in self.chosen if lora.source != name)
        self.worn[:] = [lora for lora in self.worn if lora.source != name]

    async def choose(self, loras: Sequence[Lora], paths: Sequence[str | None], try_on: TryOn) -> None:
        """Have requests that do not say what they wear wear these, of which those with a path are registered first.

        RequestError for one that cannot be, and for names that are not registered: then nothing has changed. So it is
        for what whoever draws cannot wear, who is to `try_on` what was chosen.
        """
        async with self._changing:
            await self._put_on(loras, paths, try_on)

    def _with(self, loras: Sequence[Lora], paths: Sequence[str | None]) -> dict[str, str]:
        """What would be registered with those of `loras` that have a path."""
        files = dict(self.files)
        for lora, path in zip(loras, paths, strict=True):
            if path is not None:
                files[lora.source] = self._checked(lora.source, path, files)
        loras_of(list(loras), files)
        for lora in loras:
            if lora.component and self.networks and lora.component not in self.networks:
                why = "which this model does not have; use all, or leave it out"
                raise RequestError(f"{lora.source} cannot be for {lora.component}, {why}", "target")
        return files

    async def wear(self, strength: float | None, try_on: TryOn) -> None:
        """Have what was chosen be worn, at another strength if there is one; RequestError if nothing was chosen."""
        async with self._changing:
            if not self.chosen:
                raise RequestError("no adapter was set; POST /v1/set_lora sets one", "lora_nickname")
            loras = [lora if strength is None else replace(lora, scale=strength) for lora in self.chosen]
            await self._put_on(loras, [None] * len(loras), try_on)

    async def _put_on(self, loras: Sequence[Lora], paths: Sequence[str | None], try_on: TryOn) -> None:
        await try_on(loras_of(list(loras), self._with(loras, paths)) or ())
        self.files.update(self._with(loras, paths))  # others came and went meanwhile
        self.chosen = tuple(loras)
        self.worn[:] = self.chosen

    def take_off(self) -> None:
        """Requests that do not say what they wear wear nothing; what was chosen is remembered."""
        self.worn.clear()


def _can_be_said(name: str) -> bool:
    """Whether requests and answers can have the name: names of files may have bytes that are no text, or lines."""
    return 0 < len(name) <= LONGEST and name.isprintable()
