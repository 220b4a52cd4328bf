"""Which kind of machine an engine computes on, as code of the contract asks for it."""

from __future__ import annotations

from typing import Any

import torch

from omnimuse.compat.contract.names import no_attribute
from omnimuse.compat.contract.surroundings import here


class Platform:
    """The machine of the engine that runs the code which asks."""

    @property
    def device_type(self) -> str:
        """`"cuda"`, `"cpu"` ..."""
        return here("current_omni_platform").device.type

    def is_cuda(self) -> bool:
        """Whether it is a GPU of NVIDIA."""
        return self.device_type == "cuda" and torch.version.hip is None

    def is_rocm(self) -> bool:
        """Whether it is a GPU of AMD."""
        return self.device_type == "cuda" and torch.version.hip is not None

    def is_cuda_alike(self) -> bool:
        """Whether it is either."""
        return self.device_type == "cuda"

    def is_cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.device_type == "cpu"

    def is_npu(self) -> bool:
        """Whether it is one of Huawei's."""
        return self.device_type == "npu"

    def is_xpu(self) -> bool:
        """Whether it is one of Intel's."""
        return self.device_type == "xpu"

    def get_torch_device(self, local_rank: int | None = None) -> torch.device:
        """The device, which does not depend on a number."""
        return here("current_omni_platform").device

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device_type != "cpu":
            torch.accelerator.synchronize()

    def empty_cache(self) -> None:
        """Give back memory that nobody uses."""
        if self.device_type != "cpu":
            torch.accelerator.empty_cache()

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)
