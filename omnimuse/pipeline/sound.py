"""Stock stages of sound: one that was given becomes latents to start from, latents become a waveform piece by piece.

For autoencoders with the contract of `components/oobleck.py`. Every piece is a short step, so decoding can be
cancelled, paused and heard while it goes on; only what was asked for is decoded.

Letters: C latent channels, L latents, c channels of the sound, n its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.components.oobleck import deviations
from omnimuse.core.request import Recording, Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.noise import draw
from omnimuse.media.recording import samples_of
from omnimuse.pipeline.arrival import Collected
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

PIECE = 128
"""Latents that are decoded at once, those around them aside."""
COLUMNS = 256
"""A look at a sound has at most so many columns."""

Window = Callable[[Configs, Request], tuple[int, int]]
"""(configs, request) -> the first sample of the waveform that is asked for, and the first that is not any more."""


@dataclass(frozen=True)
class EncodeSound(Stage):
    """Writes `sound_moments`: what the autoencoder makes of the first of `sounds`, float32 [2 C, L]: means of the
    latents, then what their deviations come from; None without a sound. Equal sounds are encoded once.

    The sound is brought to the autoencoder's rate and channels, and cut or filled up with silence to `length` latents.
    """

    length: Callable[[Configs], int]
    name: str = "encode sound"
    reads: tuple[str, ...] = ("sounds",)
    writes: tuple[str, ...] = ("sound_moments",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return tuple(sound.digest for sound in state["sounds"][:1])

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            sounds = state["sounds"]
            state["sound_moments"] = self._encode(ctx, sounds[0]) if sounds else None

    def _encode(self, ctx: Context, recording: Recording) -> Tensor:
        vae: Any = ctx.network("vae")
        wave = torch.from_numpy(samples_of(recording, vae.config.sampling_rate, vae.config.audio_channels))  # [c, n]
        whole = self.length(ctx.configs) * vae.config.hop
        filled = F.pad(wave[:, :whole], (0, max(0, whole - wave.shape[1])))
        return vae.encode(filled[None].to(ctx.device, vae.dtype))[0].float()


@dataclass(frozen=True)
class DrawSoundLatents(Stage):
    """Writes `sound_latents` [C, L], drawn from `sound_moments` by the state's own generator after the noise; None
    where there are none.
    """

    name: str = "draw sound latents"
    reads: tuple[str, ...] = ("sound_moments", "noise")
    writes: tuple[str, ...] = ("sound_latents",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            moments = state["sound_moments"]
            state["sound_latents"] = None if moments is None else _drawn(moments, state.generator)


def _drawn(moments: Tensor, generator: torch.Generator) -> Tensor:
    mean, scale = moments.chunk(2)  # [C, L]
    return mean + deviations(scale) * draw((1, *mean.shape), generator, torch.float32, mean.device)[0]


@dataclass
class Decoding:
    """What decoding remembers of one state between steps: the window in samples, and its sound so far."""

    start: int
    end: int
    sound: Collected  # [c, n]


@dataclass(frozen=True)
class DecodeAudio(Loop):
    """From `latents` [C, L] to `sound`: float32 [c, n], the `window` of the waveform; for output "latent" the latents.

    A piece is decoded with as many latents around it as reach into it, so it is what the whole would be.
    """

    window: Window
    piece: int = PIECE
    name: str = "decode"
    reads: tuple[str, ...] = ("latents",)
    writes: tuple[str, ...] = ("sound",)
    uses: tuple[str, ...] = ("vae",)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        if state.request.params.output_type == "latent":
            return [Step(0)]  # they are handed over as they are
        start, end = self.window(ctx.configs, state.request)
        vae: Any = ctx.network("vae")
        sound = Collected((vae.config.audio_channels, end - start), ctx.send)
        state.working["decode"] = Decoding(start, end, sound)
        if vae.margin is None:
            return [Step(0)]
        first, last = start // vae.config.hop, -(-end // vae.config.hop)
        return [Step(index) for index in range(-(-(last - first) // self.piece))]

    def cost(self, ctx: Context, state: State) -> int:
        """A piece counts as many tokens as it has latents."""
        return self.piece if "decode" in state.working else 1

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if "decode" not in state.working:
            return
        vae: Any = ctx.network("vae")
        decoding: Decoding = state.working["decode"]
        at, piece = self._decode(vae, state["latents"], decoding, step.index)
        decoding.sound.put((slice(None), slice(at, at + piece.shape[1])), piece)
        state.grow("audio", at, piece)

    def finish(self, ctx: Context, state: State) -> None:
        decoding = state.working.get("decode")
        state["sound"] = state["latents"] if decoding is None else decoding.sound.finished()

    def _decode(self, vae: Any, latents: Tensor, decoding: Decoding, index: int) -> tuple[int, Tensor]:
        """Piece number `index`, and the sample of the window at which it begins."""
        hop, length = vae.config.hop, latents.shape[1]
        if vae.margin is None:
            first, last, low, high = 0, length, 0, length
        else:
            first = decoding.start // hop + index * self.piece
            last = min(first + self.piece, -(-decoding.end // hop))
            low, high = max(0, first - vae.margin), min(length, last + vae.margin)
        wave = vae.decode(latents[None, :, low:high].to(vae.dtype))[0].float()  # [c, samples]
        begin, end = max(first * hop, decoding.start), min(last * hop, decoding.end)
        return begin - decoding.start, wave[:, begin - low * hop : end - low * hop]


def preview_of_latents(ctx: Context, latents: Tensor) -> Tensor:
    """A look at an unfinished sound: time goes to the right, every latent channel [C, L] is a line -> [3, C, columns].

    Brighter is more; float32 in [0, 1].
    """
    columns = min(latents.shape[1], COLUMNS)
    picture = F.interpolate(latents.float()[None], size=columns, mode="area")[0]  # [C, columns]
    return (picture / 6 + 0.5).clamp(0, 1).expand(3, -1, -1)
