"""Weights of an engine that rests: they leave the device, and come back to the bit.

Driven by the engine between two ticks, when no block runs and nobody computes with a weight: states in progress stay as
they are. Beside a CPU weights wait in a file without a name, beside an accelerator in pinned host memory, as offloaded
ones do. Known elsewhere as sleep and wake.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from omnimuse.layers.few import FewLinear
from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.host import DeviceLanes, HostStore
from omnimuse.offload.parcels import Parcel
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore, Store
from omnimuse.worker.failures import free_memory


class Rest:
    """Where the weights of `components`, which compute on `device`, are while the engine rests.

    `folder` is where they wait beside a CPU (None: the system's folder for temporary files).
    """

    def __init__(self, components: Residency, device: torch.device, folder: Path | None = None) -> None:
        self._components, self._device, self._folder = components, device, folder
        self._store: Store | None = None
        self._parcels: list[Parcel] = []

    @property
    def begun(self) -> bool:
        """Whether the weights are away."""
        return self._store is not None

    def begin(self) -> int:
        """Let the weights go; how many bytes that were on the device wait now. ConfigError if there is no room."""
        if self._store is not None:
            return 0
        store = FileStore(self._folder) if self._device.type == "cpu" else HostStore(DeviceLanes(self._device))
        self._components.leave()
        try:
            self._parcels = [written(module, store) for module in self._modules() if _here(module)]
        except BaseException:
            store.close()
            raise
        for parcel in self._parcels:
            parcel.leave()
        for part in (part for module in self._modules() for part in module.modules() if isinstance(part, FewLinear)):
            part.unpack()
        self._store = store
        free_memory(self._device)
        return sum(parcel.size for parcel in self._parcels)

    def end(self) -> None:
        """Every weight is where it was."""
        store, self._store = self._store, None
        if store is None:
            return
        for parcel in self._parcels:
            parcel.enter()
        self._parcels = []
        store.close()

    def close(self) -> None:
        """Let go of what waits; nothing comes back."""
        if self._store is not None:
            self._store.close()

    def _modules(self) -> list[nn.Module]:
        """Every network, once."""
        found = [self._components.wherever(name) for name in self._components]
        return list(dict.fromkeys(part for part in found if isinstance(part, nn.Module)))


def written(module: nn.Module, store: Store, *, lent: bool = False) -> Parcel:
    """What `module` has on the device, copied to the store; it is still there, until the parcel leaves."""
    here = _here(module)
    absent = {name: (_absent(tensor), names) for name, (tensor, names) in here.items()}
    parcel = Parcel(module, absent, store, lent=lent)
    content = store.content(parcel.arena)
    for name, entry in parcel.entries.items():
        entry.of(content).copy_(here[name][0])
    return parcel


def _here(module: nn.Module) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Its tensors that are on the device; those of an offloaded module may wait already."""
    return {name: slot for name, slot in stored_tensors(module).items() if not slot[0].is_meta}


def _absent(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
