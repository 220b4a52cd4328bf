"""`vllm.model_executor.models.transformers.utils`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from omnimuse.compat.contract.names import no_name


@contextmanager
def init_on_device_without_buffers(device: torch.device | str) -> Iterator[None]:
    """Parameters of modules that are made meanwhile are on `device`, say meta, and buffers where they would be."""

    def there(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to(device), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(there)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
