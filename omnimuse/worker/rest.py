"""Weights of an engine that rests: they leave the device, and come back to the bit.

Driven by the engine between two ticks, when no block runs and nobody computes with a weight: states in progress stay as
they are. Beside a CPU weights wait in a file without a name, beside an accelerator in pinned host memory, as offloaded
ones do. Known elsewhere as sleep and wake.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from omnimuse.core.errors import ConfigError, MemoryShortageError
from omnimuse.layers.few import FewLinear
from omnimuse.loader.tensors import present_tensors
from omnimuse.offload.host import store_beside
from omnimuse.offload.parcels import Parcel
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import Store
from omnimuse.parallel.agree import trouble_of_all
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.failures import free_memory, settle


class Rest:
    """Where the weights of `components`, which compute on `device`, are while the engine rests.

    `folder` is where they wait beside a CPU (None: the system's folder for temporary files).
    """

    def __init__(self, components: Residency, device: torch.device, folder: Path | None = None) -> None:
        self._components, self.device, self.folder = components, device, folder
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
        store = store_beside(self.device, self.folder)
        self._components.leave()
        try:
            self._parcels = [written(module, store) for module in self._modules() if present_tensors(module)]
        except BaseException:
            store.close()
            raise
        for parcel in self._parcels:
            parcel.leave()
        for part in (part for module in self._modules() for part in module.modules() if isinstance(part, FewLinear)):
            part.unpack()
        self._store = store
        free_memory(self.device)
        return sum(parcel.size for parcel in self._parcels)

    def end(self) -> None:
        """Every weight is where it was; where memory runs out before, it is raised, and all of them stay away."""
        if self._store is None:
            return
        try:
            for parcel in self._parcels:
                parcel.enter()
        except BaseException:
            for parcel in self._parcels:
                parcel.leave()
            raise
        store, self._store = self._store, None
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


def begin_together(rest: Rest, mesh: Mesh) -> int:
    """Let the weights of all ranks go; how many bytes left this one. ConfigError if any rank cannot, and all stay."""
    failure: Exception | None = None
    size = 0
    try:
        size = rest.begin()
    except (ConfigError, OSError, MemoryError, RuntimeError) as error:  # other ranks wait to hear of it
        failure = error
    if failure is not None:
        failure = settle(failure, "falling asleep")
    if wrong := trouble_of_all(mesh, failure):
        rest.end()
        raise ConfigError(f"the weights cannot leave: {wrong}") from failure
    return size


def end_together(rest: Rest, mesh: Mesh) -> None:
    """Bring the weights of all ranks back. MemoryShortageError if any rank has no room for its own: all stay away."""
    failure: Exception | None = None
    try:
        rest.end()
    except (OSError, MemoryError, RuntimeError) as error:
        failure = error
    if failure is not None:
        failure = settle(failure, "waking up")
        free_memory(rest.device)
    if wrong := trouble_of_all(mesh, failure):
        rest.begin()
        raise MemoryShortageError(f"the weights cannot come back: {wrong}; wake up again once there is room")


def written(module: nn.Module, store: Store, *, lent: bool = False) -> Parcel:
    """What `module` has on the device, copied to the store; it is still there, until the parcel leaves."""
    here = present_tensors(module)
    absent = {name: (_absent(tensor), names) for name, (tensor, names) in here.items()}
    parcel = Parcel(module, absent, store, lent=lent)
    content = store.content(parcel.arena)
    for name, entry in parcel.entries.items():
        entry.of(content).copy_(here[name][0])
    return parcel


def _absent(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
