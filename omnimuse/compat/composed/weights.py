"""A denoising network of a plugin's own: built from its configuration, and filled by its table of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.origins import Origins
from omnimuse.compat.contract.weights import read
from omnimuse.compat.sglang.configs.models.dits.base import DiTConfig
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.compat.vllm_omni.diffusion.model_loader.diffusers_loader import ComponentSource
from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.files import few


def network_of(
    cls: Any, config: DiTConfig, checkpoint: Checkpoint, name: str, home: tuple[torch.device, torch.dtype]
) -> tuple[nn.Module, Origins]:
    """`cls(config=..., hf_config=...)` with the weights of component `name`; `home` is where, and in which format.
    Also which weights went where.

    ModelError names weights that the network lacks, or that its table sends nowhere.
    """
    device, dtype = home
    said = {key: value for key, value in checkpoint.config(name).items() if not key.startswith("_")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            made: nn.Module = cls(config=config, hf_config=said)
    finally:
        torch.set_default_dtype(before)
    table: Any = made.param_names_mapping if hasattr(made, "param_names_mapping") else {}
    mapping: Mapping[str, Any] = table or config.arch_config.param_names_mapping
    parameters, filled, origins = dict(made.named_parameters()), set[str](), Origins()
    stored = read(ComponentSource(str(checkpoint.folder), name, None, ""), origins)
    with origins:
        for key, tensor in renamed(mapping, stored):
            if key not in parameters:
                raise ModelError(f"{name} of {checkpoint.folder} has {key!r}, which {cls.__name__} has not; map it")
            load = vars(parameters[key]).get("weight_loader", default_weight_loader)
            load(parameters[key], tensor)
            filled.add(key)
    if missing := sorted(set(parameters) - filled):
        raise ModelError(f"{name} of {checkpoint.folder} fills nothing into {few(missing)} of {cls.__name__}")
    return made.eval().requires_grad_(False), origins


def renamed(mapping: Mapping[str, Any], stored: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor by its new name: of the first pattern that fits, else its own.

    A new name with (place, count) is that of so many tensors one below the other; ModelError where some are missing.
    """
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in stored:
        new, place, count = target_of(mapping, key)
        if count == 1:
            yield new, tensor
            continue
        there = parts.setdefault(new, {})
        there[place] = tensor
        if len(there) == count:
            del parts[new]
            yield new, torch.cat([there[each] for each in sorted(there)])
    if parts:
        raise ModelError(
            f"of what makes up {few(sorted(parts))} not every tensor is stored; correct param_names_mapping"
        )


def target_of(mapping: Mapping[str, Any], key: str) -> tuple[str, int, int]:
    """The new name of one tensor, its place in that, and how many make it up."""
    for pattern, new in mapping.items():
        if re.match(pattern, key):
            name, place, count = (new, 0, 1) if isinstance(new, str) else new
            return re.sub(pattern, name, key), place, count
    return key, 0, 1
