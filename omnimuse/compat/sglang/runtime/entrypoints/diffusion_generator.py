"""`sglang.multimodal_gen.runtime.entrypoints.diffusion_generator`: the engine as scripts call it, for any model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from omnimuse import api
from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.compat.sglang.runtime.entrypoints.options import Files, Wanted, chosen, config_of, wanted_of
from omnimuse.core.config import Config
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora, component_of
from omnimuse.core.output import Part, Result
from omnimuse.engine.local import present
from omnimuse.media.finished import save

SUFFIXES = {"image": ".png", "video": ".mp4", "audio": ".wav"}


class DiffGenerator:
    """An engine for one model: `DiffGenerator.from_pretrained(model_path=..., plugin="my_package")`.

    Close it, or use it in a `with`.
    """

    def __init__(self, config: Config) -> None:
        self._ours = api.Omni(config.model.model, config=config)
        self._files: dict[str, str] = {}
        self._chosen: list[Lora] = []
        self._on = False

    @classmethod
    def from_pretrained(cls, local_mode: bool = True, **kwargs: Any) -> Self:
        """An engine in this process, with the options that SGLang has (docs/compat.md)."""
        options = {**kwargs, "local_mode": local_mode}
        path, nickname = options.pop("lora_path", None), options.pop("lora_nickname", "default")
        made = cls(config_of(options))
        if path is not None:
            try:
                made.set_lora(nickname, path)
            except BaseException:
                made.shutdown()
                raise
        return made

    def generate(
        self,
        prompt: str | Sequence[str] | Mapping[str, Any] | None = None,
        sampling_params_kwargs: Mapping[str, Any] | None = None,
        sampling_params: SamplingParams | None = None,
        **kwargs: Any,
    ) -> Any:
        """What one prompt gave, as a dict, or of several outputs a list; with `return_frames` the arrays alone.

        A choice is given by its name, in `sampling_params_kwargs`, or in a `SamplingParams`. Prompts are drawn
        together; what goes wrong with any of them is raised when all have ended. A file is written for each output
        unless `save_output` is false.
        """
        asked = {**(chosen(sampling_params) if sampling_params is not None else {}), **kwargs}
        asked |= sampling_params_kwargs or {}
        if isinstance(prompt, Mapping):  # the first argument of a newer form
            asked |= prompt
        elif prompt is not None:
            asked["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        wanted = wanted_of(asked, self._ours.engine.door.spec)
        params = replace(wanted.params, loras=self._worn) if self._worn else wanted.params
        began = time.perf_counter()
        results = self._ours.generate(list(wanted.prompts), params, progress=False)
        lasted = time.perf_counter() - began
        if wrong := next((result.error for result in results if result.error is not None), None):
            raise wrong
        made = [each for number, result in enumerate(results) for each in self._told(result, wanted, number, lasted)]
        found = [each["frames"] for each in made] if wanted.files.frames else made
        return found[0] if len(found) == 1 else found

    def set_lora(
        self,
        lora_nickname: str | Sequence[str],
        lora_path: str | Sequence[str | None] | None = None,
        target: str | Sequence[str] = "all",
        strength: float | Sequence[float] = 1.0,
    ) -> None:
        """Wear adapters in every request from now on; a nickname alone is one that was given before, or its file."""
        names = [lora_nickname] if isinstance(lora_nickname, str) else list(lora_nickname)
        paths = [lora_path] * len(names) if lora_path is None or isinstance(lora_path, str) else list(lora_path)
        scales = [float(each) for each in strength] if isinstance(strength, Sequence) else [strength] * len(names)
        targets = [target] * len(names) if isinstance(target, str) else list(target)
        if not len(names) == len(paths) == len(scales) == len(targets):
            raise RequestError(
                f"{len(names)} nicknames have {len(paths)} paths, {len(scales)} strengths and {len(targets)} targets; "
                "give one for each",
                "lora",
            )
        components = [component_of(each) for each in targets]
        files = self._files | {name: path for name, path in zip(names, paths, strict=True) if path is not None}
        loras = [Lora(*each) for each in zip(names, scales, components, strict=True)]
        self._wear(loras, files)

    def merge_lora_weights(self, target: str = "all", strength: float = 1.0) -> None:
        """Wear what was set, at another strength; weights are never merged, so that nothing is left of it after."""
        _check_target(target)
        self._wear([replace(each, scale=strength) for each in self._chosen], self._files)

    def unmerge_lora_weights(self, target: str = "all") -> None:
        """Wear nothing, until adapters are set or merged again."""
        _check_target(target)
        self._on = False

    def list_loras(self) -> dict[str, Any]:
        """The adapters that were given, and those that are worn."""
        given = [{"nickname": name, "path": path} for name, path in self._files.items()]
        worn = dict[str, list[dict[str, Any]]]()
        for each in self._chosen if self._on else ():
            about = {"nickname": each.source, "path": self._files.get(each.source, each.source)}
            worn.setdefault(each.component or "all", []).append({**about, "merged": False, "strength": each.scale})
        return {"loaded_adapters": given, "active": worn}

    def _wear(self, loras: Sequence[Lora], files: Mapping[str, str]) -> None:
        """Wear these from now on, by the names that `files` have; RequestError, and nothing has changed, for others."""
        self._ours.try_on([replace(each, source=files.get(each.source, each.source)) for each in loras])
        self._files, self._chosen, self._on = dict(files), list(loras), True

    @property
    def _worn(self) -> tuple[Lora, ...]:
        found = self._chosen if self._on else ()
        return tuple(replace(each, source=self._files.get(each.source, each.source)) for each in found)

    def shutdown(self) -> None:
        """Free the weights."""
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _told(self, result: Result, wanted: Wanted, number: int, lasted: float) -> list[dict[str, Any]]:
        """What one prompt gave, output by output; its files are written on the way."""
        shown = present(
            replace(result, params=replace(result.params, output_type="pil")), self._ours.engine.door.limits
        )
        values = {medium: list(each) for medium, each in result.tensors.items()}
        found = []
        for output, parts in enumerate(shown.parts):
            frames = frames_of(parts)
            at = (number, output) if len(wanted.prompts) > 1 or len(shown.parts) > 1 else None
            main = values[parts[0].medium][output]
            told = {
                "samples": main[:, None] if parts[0].medium == "image" else main.movedim(0, 1),  # [C, F, h, w]
                "frames": frames,
                "audio": values["audio"][output] if "audio" in values else None,
                "prompts": result.prompt,
                "size": (result.params.height, result.params.width, len(frames)),
                "generation_time": lasted,
                "timings": dict(result.timings),
                "seed": result.seeds[output],
                "prompt_index": output,
                "output_file_path": write(parts, wanted.files, result.prompt, at) if wanted.files.save else None,
            }
            found.append(told)
        return found

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def _check_target(target: str | Sequence[str]) -> None:
    if target not in ("all", ["all"]):
        raise RequestError(f"target={target!r} is not taken here; what was set is worn, or not, as a whole")


def frames_of(parts: Sequence[Part]) -> list[Any]:
    """Pictures as arrays [h, w, 3] of bytes: one, or all of a video; none of a sound."""
    if parts[0].medium == "video":
        return [np.asarray(frame) for frame in parts[0].data.frames]
    return [np.asarray(parts[0].data)] if parts[0].medium == "image" else []


def write(parts: Sequence[Part], files: Files, prompt: str, at: tuple[int, int] | None) -> str:
    """Write one file that is not there yet, and say where; of several outputs the name has their numbers."""
    folder = Path(files.folder)
    name = Path(files.name or "".join(each if each.isalnum() else "_" for each in prompt[:100]).strip("_") or "output")
    suffix = name.suffix if name.suffix in (".png", ".jpg", ".jpeg", ".webp", ".mp4", ".wav") else ""
    stem = name.name.removesuffix(suffix) + ("" if at is None else f"_{at[0]}_{at[1]}")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MOST_TRIES):
        path = folder / f"{stem}{f'_{number}' if number else ''}{suffix or SUFFIXES[parts[0].medium]}"
        try:
            save(parts, path, {"prompt": prompt}, replace=False)
        except FileExistsError:
            continue
        return str(path)
    raise RequestError(f"{folder} has {MOST_TRIES} files called {stem}; choose another output_file_name", "output_path")


MOST_TRIES = 10_000


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
