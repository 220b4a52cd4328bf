"""Notes of how latents become a picture, taken alike on both sides: the parts of decoders have the same names there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

AUTOENCODER = "vae"
"""The component that makes pictures of latents, on both sides."""
GIVEN = "given"
"""What notes call the input of a decoder."""


@contextmanager
def noting_decoder(autoencoder: object, noted: dict[str, Tensor]) -> Iterator[None]:
    """While this lasts, `noted` gets what the decoder of `autoencoder` is given first, and what each of its parts makes
    of that, float32. Nothing of one that has no such decoder.
    """
    decoder = dict(autoencoder.named_children()).get("decoder") if isinstance(autoencoder, nn.Module) else None
    hooks = []
    if decoder is not None:
        hooks.append(decoder.register_forward_pre_hook(lambda module, given: _note(noted, GIVEN, given)))
        for name, part in _parts(decoder):
            hooks.append(part.register_forward_hook(_noting(noted, name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What a decoder consists of, and of lists of parts each."""
    for name, part in decoder.named_children():
        each = part.named_children() if isinstance(part, nn.ModuleList) else [("", part)]
        yield from ((f"{name}.{number}".rstrip("."), one) for number, one in each)


def _noting(noted: dict[str, Tensor], name: str) -> Any:
    return lambda module, given, made: _note(noted, name, made)


def _note(noted: dict[str, Tensor], name: str, made: Any) -> None:
    first = made[0] if isinstance(made, tuple) else made
    if isinstance(first, Tensor):
        noted.setdefault(name, first.float().cpu().clone())
