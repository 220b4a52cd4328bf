"""Short ways to choose parts of a `Config`: the keywords of `Omni`, `AsyncOmni` and `explain`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from omnimuse.core.caches import cache_named
from omnimuse.core.config import Config, ModelConfig, ParallelConfig, QuantConfig, WriterConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.kinds import check_kind


class Short(TypedDict, total=False):
    """Short ways to choose parts of a `Config`; what is None or left out stays as it is there.

    `quantize` is "int8", or "transformer=int8,text_encoder=int8", and `files` have the weights of components, by name
    (docs/quantization.md). `cache` is the step cache of requests that name none: "fast", or "dbcache,threshold=0.1"
    (docs/caches.md). Packages in `plugin` bring pipelines of their own. `deploy` is a file that spreads the model over
    processes, `strategy` one that lies over it, and `writer` says who writes text (docs/deploy.md).
    """

    dtype: str | None
    device: str | None
    threads: int | None
    quantize: str | None
    cache: str | None
    parallel: ParallelConfig | None
    plugin: str | Sequence[str]
    files: Mapping[str, str | Path]
    deploy: str | Path | None
    strategy: str | Path | None
    writer: WriterConfig | None


_FILES = dict.fromkeys(("deploy", "strategy"), str | Path)
_READ = {
    "config": Config,
    "quantize": str,
    "cache": str,
    "plugin": str | Sequence[str],
    "files": Mapping[str, str | Path],
    **_FILES,
}
"""The kinds of what `configure` reads; those of all else `Config` and its parts tell."""


def configure(model: str | Path, config: Config | None, short: Short) -> Config:
    """The whole configuration from what a caller gave."""
    if unknown := short.keys() - Short.__annotations__.keys():
        allowed = ", ".join(("config", *Short.__annotations__))
        raise TypeError(f"{', '.join(sorted(unknown))} cannot be chosen here; use {allowed}")
    for name, kind in _READ.items():
        check_kind(name, {"config": config, **short}.get(name), kind | None)
    model = str(model) if isinstance(model, Path) else model
    base = config or Config(ModelConfig(model))
    part, host, packed, plugin = base.model, base.host, base.quantize, short.get("plugin") or ()
    plugins = (plugin,) if isinstance(plugin, str) else tuple(plugin)
    dtype, device = short.get("dtype") or part.dtype, short.get("device") or part.device
    files = {name: str(file) for name, file in (short.get("files") or {}).items()} or part.files
    part = replace(part, model=model, dtype=dtype, device=device, plugins=plugins or part.plugins, files=files)
    if (count := short.get("threads")) is not None:
        host = replace(host, threads=count)
    if (scheme := short.get("quantize")) is not None:
        packed = QuantConfig.of(scheme)
    cache = base.cache if (skipping := short.get("cache")) is None else cache_named(skipping)
    parallel, writer = short.get("parallel") or base.parallel, short.get("writer") or base.writer
    base = replace(base, model=part, host=host, quantize=packed, cache=cache, parallel=parallel, writer=writer)
    placed, strategy = short.get("deploy"), short.get("strategy")
    if placed is None:
        if strategy is not None:
            raise ConfigError(f"strategy={str(strategy)!r} lies over a deploy file; name that as `deploy`")
        return base
    from omnimuse.deploy.placing import read_deploy

    return replace(base, deploy=read_deploy(Path(placed), Path(strategy) if strategy else None))
