"""Options of `omnimuse serve` by the names that vLLM-Omni's server has for them: its command lines are ours, too.

What ours has under another name is in `core/names.py`, and read wherever options are. Here is what takes a name of its
own: switches for what is so anyway, and what only a pipeline written to that engine's guide is told (docs/compat.md).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from omnimuse.core.bounds import object_in
from omnimuse.core.cache_names import documented, polynomial
from omnimuse.core.caches import CacheConfig
from omnimuse.core.config import Config, ContractConfig
from omnimuse.core.errors import ConfigError


def add_contract_options(parser: argparse.ArgumentParser) -> None:
    """Those names."""
    theirs = parser.add_argument_group("as vLLM-Omni's server calls it (docs/compat.md)")
    theirs.add_argument("--omni", action="store_true", help="serve a model, as always")
    theirs.add_argument("--enforce-eager", action="store_true", help="no --compile, as without it")
    theirs.add_argument("--enable-cpu-offload", action="store_true", help="--offload components")
    theirs.add_argument("--enable-layerwise-offload", action="store_true", help="--offload layers")
    theirs.add_argument("--cache-backend", default="", metavar="NAME", help="a step cache: tea_cache or cache_dit")
    theirs.add_argument("--cache-config", default="", metavar="JSON", help="its settings")
    theirs.add_argument("--max-num-seqs", type=int, metavar="N", help="outputs in progress at a time, at most")
    theirs.add_argument("--step-execution", action="store_true", help="refuse a pipeline that has no steps")
    theirs.add_argument("--trust-remote-code", action="store_true", help="a pipeline is told; nothing else runs any")
    theirs.add_argument(
        "--enable-diffusion-pipeline-profiler", action="store_true", help="the log has what the parts of a request took"
    )


def with_contract(args: argparse.Namespace, config: Config) -> Config:
    """`config`, with what was chosen by those names; ConfigError where our own names choose something else."""
    if args.enforce_eager and config.compile.mode != "none":
        raise ConfigError("--enforce-eager and --compile cannot both be; leave one out")
    for name, mode in (("enable-cpu-offload", "components"), ("enable-layerwise-offload", "layers")):
        if vars(args)[name.replace("-", "_")]:
            if config.offload.mode not in ("none", mode):
                raise ConfigError(f"--{name} and --offload {config.offload.mode} choose two things; leave one out")
            config = replace(config, offload=replace(config.offload, mode=mode))  # type: ignore[arg-type]
    backend = args.cache_backend or "none"
    coefficients, settings = polynomial(backend, _settings(args.cache_config))
    if args.cache_backend or args.cache_config:
        if config.cache != CacheConfig("none"):
            raise ConfigError("--cache-backend and --cache both choose the step cache; leave one out")
        config = replace(config, cache=documented(backend, settings))
    if args.max_num_seqs is not None:
        if args.max_num_seqs < 1:
            raise ConfigError(f"--max-num-seqs {args.max_num_seqs} is not allowed; use at least 1")
        config = replace(config, schedule=replace(config.schedule, max_running=args.max_num_seqs))
    told = ContractConfig(
        steps=True if args.step_execution else None,
        remote_code=args.trust_remote_code,
        profile=args.enable_diffusion_pipeline_profiler,
        slicing=args.vae_slicing,
        coefficients=coefficients,
    )
    return replace(config, contract=told)


def _settings(text: str) -> dict[str, object]:
    if (found := object_in(text or "{}")) is None:
        raise ConfigError(f"--cache-config {text!r:.80} is no JSON object of names and values")
    return found
