"""`vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl`, and every `autoencoder_kl_NAME` beside it.

Each has a `DistributedAutoencoderKL...` that is the class of diffusers called so, of which ranks share the tiles
(`vae_patch_parallel_size`). How frames are cut into tiles and blended stays with diffusers: its own method runs twice,
first to tell what its decoder is called for, and then with what the ranks have made of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor import (
    DistributedOperator,
    DistributedVaeMixin,
    GridSpec,
    TileTask,
)

PREFIX = "Distributed"
REMEMBERED = "feat_cache"
"""What decoders call the argument in which they remember the frames before: calls with the same are of one tile."""


class TilesShared(DistributedVaeMixin):
    """In front of a class of diffusers: its `tiled_decode`, with a decoder that is called on several ranks."""

    decoder: nn.Module
    config: Mapping[str, Any]

    def tiled_decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the class itself has it."""
        library: Any = super()
        if not self.is_distributed_enabled():
            return library.tiled_decode(z, *args, **kwargs)
        tiles: list[list[tuple[Any, Any]]] = []
        channels = 3 * (self.config.get("patch_size") or 1) ** 2

        def note(tile: Tensor, *besides: Any, **told: Any) -> Tensor:
            remembered = told.get(REMEMBERED)
            if remembered is None or not tiles or tiles[-1][0][1].get(REMEMBERED) is not remembered:
                tiles.append([])
            tiles[-1].append(((tile, *besides), told))
            return tile.new_zeros(tile.shape[0], channels, *[1] * (tile.ndim - 2))

        with answering(self.decoder, note):
            library.tiled_decode(z, *args, **kwargs)

        def split(latents: Tensor) -> tuple[list[TileTask], GridSpec]:
            work = [sum(given[0].numel() for given, _ in calls) for calls in tiles]
            tasks = [TileTask(number, (number,), tiles[number], size) for number, size in enumerate(work)]
            return tasks, GridSpec((), (len(tasks),), {"calls": [len(calls) for calls in tiles]})

        def made(task: TileTask) -> Tensor:
            frames = [self.decoder(*given, **told) for given, told in task.tensor]
            task.tensor.clear()  # what a decoder remembers of a tile is large
            return frames[0] if len(frames) == 1 else torch.cat(frames, dim=2)

        def joined(found: dict[tuple[int, ...], Tensor], grid: GridSpec) -> Any:
            answers = iter(in_turn([found[number,] for number in range(len(found))], grid.tile_spec["calls"]))
            with answering(self.decoder, lambda *besides, **told: next(answers)):
                return library.tiled_decode(z, *args, **kwargs)

        return self.distributed_executor.execute(z, DistributedOperator(split, made, joined))


def in_turn(found: list[Tensor], calls: list[int]) -> Iterator[Tensor]:
    """What each call of a decoder gives: the first of a tile all of its frames, and the others none."""
    for tile, count in zip(found, calls, strict=True):
        yield tile
        for _ in range(count - 1):
            yield tile[:, :, :0]


@contextmanager
def answering(decoder: nn.Module, answer: Callable[..., Tensor]) -> Iterator[None]:
    """For the length of a `with` block a call of the decoder gives what `answer` gives."""
    before = vars(decoder).get("forward")
    decoder.forward = answer
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before


@cache
def shared_out(kind: type[Any]) -> type[Any]:
    """The class of diffusers, of which ranks share the tiles; itself, where it knows none."""
    return type(f"{PREFIX}{kind.__name__}", (TilesShared, kind), {}) if hasattr(kind, "tiled_decode") else kind


def __getattr__(name: str) -> Any:
    if name.startswith(f"{PREFIX}Autoencoder") and hasattr(diffusers, name.removeprefix(PREFIX)):
        return shared_out(getattr(diffusers, name.removeprefix(PREFIX)))
    raise no_name(__name__, name)
