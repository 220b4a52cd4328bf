"""The autoencoder of pictures that FLUX.1, Z-Image and most models of pictures use (arXiv 2112.10752, section 3.1).

The arithmetic, and the names of the weights, are those of diffusers' `AutoencoderKL`, and of its `AutoencoderKLFlux2`,
which keeps statistics of patches of latents. Scaling and shifting latents, and drawing them from their distribution, is
the pipeline's work.

Hidden states are what a picture takes most memory for. So parts are handed them in a list, from which they take them:
then nobody further out keeps what a part does not need any more.

Letters: B batch, S cells of a picture, C channels of hidden states; c h w latent channels, height, width; H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.upsample import upsample
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts
from omnimuse.loader.rules import Rename

EPS = 1e-6
PIXEL_CHANNELS = 3

RULES = (
    Rename(r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    Rename(r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    Rename(r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    Rename(r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
"""Names that autoencoders saved by diffusers before 0.12 give to their attention."""

SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
ELSEWHERE = frozenset({*SCALING, "sample_size", "force_upcast", "batch_norm_momentum"})
"""Keys that change nothing here: the pipeline scales and shifts; others ask for tiles and for float32, choices that the
engine makes, and the last is for training."""

STATISTICS_PATCH = (2, 2)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The facts in the checkpoint's vae/config.json; the defaults are those of diffusers."""

    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    decoder_block_out_channels: tuple[int, ...] | None = None
    batch_norm_eps: float | None = None

    def __post_init__(self) -> None:
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or groups < 1 or any(width < 1 or width % groups for width in (*widths, *self.decoder_widths)):
            raise ModelError(
                f"vae/config.json: block_out_channels={widths}, norm_num_groups={groups}; there must be at least one "
                "level, and the groups must divide the channels of each"
            )

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """The channels of the decoder's levels, from the largest picture to the smallest."""
        return self.decoder_block_out_channels or self.block_out_channels

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> AutoencoderConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        levels = len(config.get("block_out_channels", cls.block_out_channels))
        fixed = {
            "act_fn": ("silu",),
            "in_channels": (PIXEL_CHANNELS,),
            "out_channels": (PIXEL_CHANNELS,),
            "down_block_types": (["DownEncoderBlock2D"] * levels,),
            "up_block_types": (["UpDecoderBlock2D"] * levels,),
            "patch_size": (STATISTICS_PATCH,),
        }
        return read_facts(cls, config, "vae/config.json", fixed, ELSEWHERE)


class AutoencoderKL(nn.Module):
    """Between pixels in [-1, 1] and latents that are 2 ** (levels - 1) times smaller."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        latent, moments = config.latent_channels, 2 * config.latent_channels
        self.scale = 2 ** (len(config.block_out_channels) - 1)  # pixels a side of a cell
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else None
        if config.batch_norm_eps is not None:  # what its buffers say is the pipeline's work, too
            self.bn = nn.BatchNorm2d(latent * STATISTICS_PATCH[0] * STATISTICS_PATCH[1], affine=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AutoencoderKL:
        """A network without content for the contents of vae/config.json; ModelError for variants it cannot be."""
        return cls(AutoencoderConfig.from_dict(config))

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 2c, h, w]: the means of the latents, then the logarithms of their variances.

        Each level but the last halves a side and rounds down.
        """
        moments = self.encoder(pixels)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, h, w], scaled as `encode` gives them -> [B, 3, H, W], mostly in [-1, 1]."""
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] -> moments [B, 2c, h, w]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(PIXEL_CHANNELS, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(before, width, config.layers_per_block, groups, down=number + 1 < len(widths))
            for number, (before, width) in enumerate(zip(_shifted(widths), widths, strict=True))
        )
        self.mid_block = Middle(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = through((*self.down_blocks, self.mid_block), [self.conv_in(x)])
        x = F.silu(self.conv_norm_out(x), inplace=True)
        return self.conv_out(x)


class Decoder(nn.Module):
    """Latents [B, c, h, w] -> pixels [B, 3, H, W]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.decoder_widths[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            Level(before, width, config.layers_per_block + 1, groups, up=number + 1 < len(widths))
            for number, (before, width) in enumerate(zip(_shifted(widths), widths, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], PIXEL_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = through((self.mid_block, *self.up_blocks), [self.conv_in(x)])
        x = F.silu(self.conv_norm_out(x), inplace=True)
        return self.conv_out(x)


def through(parts: Iterable[nn.Module], held: list[Tensor]) -> Tensor:
    """What `parts`, one after the other, make of the one tensor that is `held`; each takes it out of the list."""
    for part in parts:
        held.append(part(held))
    return held.pop()


class Level(nn.Module):
    """Residual blocks at one size, then half or twice the size."""

    def __init__(
        self, before: int, width: int, layers: int, groups: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width if layer else before, width, groups) for layer in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(width)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(width)] if up else [])

    def forward(self, held: list[Tensor]) -> Tensor:
        return through((*self.resnets, *self.downsamplers, *self.upsamplers), held)


class Middle(nn.Module):
    """Two residual blocks at the smallest size, with attention between them where the checkpoint has it."""

    def __init__(self, width: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([CellAttention(width, groups)] if attends else [])

    def forward(self, held: list[Tensor]) -> Tensor:
        return through((self.resnets[0], *self.attentions, self.resnets[1]), held)


class Residual(nn.Module):
    """Two convolutions, each after a norm, beside the input or its projection to another width."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, held: list[Tensor]) -> Tensor:
        x = held.pop()
        beside = x if self.conv_shortcut is None else self.conv_shortcut(x)  # first: a convolution needs `x` no more
        x = F.silu(self.norm1(x), inplace=True)
        x = self.conv1(x)
        x = F.silu(self.norm2(x), inplace=True)
        return self.conv2(x).add_(beside)


class CellAttention(nn.Module):
    """Every cell attends to every cell, in one head over all channels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, held: list[Tensor]) -> Tensor:
        x = held.pop()
        cells = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # [B, 1, S, C]
        seen = F.scaled_dot_product_attention(self.to_q(cells), self.to_k(cells), self.to_v(cells))
        return x + self.to_out(seen[:, 0]).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, h, w]


class Downsample(nn.Module):
    """Half the size, rounded down; the border of zeros is below and on the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, held: list[Tensor]) -> Tensor:
        x = F.pad(held.pop(), (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the size: every cell four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, held: list[Tensor]) -> Tensor:
        return upsample(held.pop(), self.conv)


def _shifted(widths: Sequence[int]) -> Sequence[int]:
    """The channels that each level is given: those of the one before it."""
    return (widths[0], *widths[:-1])
