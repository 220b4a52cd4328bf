"""The Z-Image transformer: one stream of image tokens followed by caption tokens (arXiv 2511.22699).

The arithmetic is that of diffusers' `ZImageTransformer2DModel` in its basic mode (no reference images); the blocks are
those of `components/one_stream.py`. What does not depend on the step, the refined caption and the rotary tables, is
computed once per request by `ZImageTransformer.prepare`. Rows of any size and caption length share a forward: their
tokens are laid end to end.

Letters: R rows, S tokens, D width, H head dim, M modulation width; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.one_stream import Blocks, Head, OneStreamBlock, OneStreamCond, block_plan
from omnimuse.components.patches import PATCH, patchify, unpatchify
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.plans import Cutting
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.network import Network
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.loader.facts import read_facts

TOKEN_MULTIPLE = 32  # image and caption are each padded to a multiple of this; pads are attended to
MODULATION_WIDTH = 256
TIME_HIDDEN = 1024


@dataclass(frozen=True)
class ZImageConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 6B model."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    def __post_init__(self) -> None:
        three_axes = len(self.axes_dims) == len(self.axes_lens) == 3
        if not three_axes or self.dim != self.n_heads * sum(self.axes_dims):
            raise ModelError(
                f"transformer/config.json: dim={self.dim}, n_heads={self.n_heads}, "
                f"axes_dims={self.axes_dims}, axes_lens={self.axes_lens}; "
                "there must be three axes, and dim = n_heads * sum(axes_dims)"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ZImageConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {
            "all_patch_size": ([PATCH],),
            "all_f_patch_size": ([1],),
            "n_kv_heads": (config.get("n_heads", cls.n_heads),),
            "qk_norm": (True,),
            "siglip_feat_dim": (None,),
        }
        return read_facts(cls, config, "transformer/config.json", fixed)


@dataclass(frozen=True)
class ZImageStatic:
    """What stays the same over all steps of one image: the refined caption and all tokens' positions."""

    caption: Tensor  # [S_caption, D], S_caption a multiple of TOKEN_MULTIPLE
    rope: Tensor  # [S_image + S_caption, 2, H/2, 2], float32
    height: int  # latent pixels
    width: int

    @property
    def tokens(self) -> int:
        """How many tokens the main layers see for this image."""
        return len(self.rope)

    @property
    def text_tokens(self) -> int:
        """How many of them are not the image's."""
        return len(self.caption)


@dataclass(frozen=True)
class ZImageInputs:
    """One row: noisy latents [c, h, w], the scalar t = 1 - sigma, and what `prepare` made."""

    latents: Tensor
    t: Tensor
    static: ZImageStatic


class ZImageTransformer(Network):
    """Predicts the velocity from noise to image, one tensor [c, h, w] per row. The pipeline negates it."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch_dim = config.dim, PATCH * PATCH * config.in_channels
        modulation = min(dim, MODULATION_WIDTH)
        self.image_embedder = nn.Linear(patch_dim, dim)
        self.image_pad = nn.Parameter(torch.zeros(1, dim))
        self.caption_norm = RMSNorm(config.cap_feat_dim, config.norm_eps)
        self.caption_embedder = nn.Linear(config.cap_feat_dim, dim)
        self.caption_pad = nn.Parameter(torch.zeros(1, dim))
        self.time_embedder = TimestepEmbedding(modulation, TIME_HIDDEN)
        refiners, layers = range(config.n_refiner_layers), range(config.n_layers)
        blocks = Blocks(dim, config.n_heads, config.n_heads, int(dim / 3 * 8), modulation, config.norm_eps)
        self.noise_refiner = BlockStack(OneStreamBlock(blocks, "self") for _ in refiners)
        self.context_refiner = BlockStack(OneStreamBlock(blocks, "self", timed=False) for _ in refiners)
        self.layers = BlockStack(OneStreamBlock(blocks, "joint") for _ in layers)
        self.head = Head(blocks, patch_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ZImageTransformer:
        return cls(ZImageConfig.from_dict(config))

    def stacks(self) -> dict[str, BlockStack]:
        return {"noise_refiner": self.noise_refiner, "layers": self.layers}

    def plan(self) -> Mapping[str, Cutting]:
        return block_plan({"context_refiner": self.context_refiner, **self.stacks()})

    def prepare(self, features: Tensor, height: int, width: int) -> ZImageStatic:
        """Text features [S, cap_feat_dim] and the latent size -> what all steps share.

        Raises RequestError if the size is odd, or if there are more positions than the checkpoint was made
        for.
        """
        caption_tokens = _round_up(len(features))
        self._check_size(caption_tokens, height, width)
        device = features.device
        rows, columns = height // PATCH, width // PATCH
        image = torch.cartesian_prod(
            torch.arange(caption_tokens + 1, caption_tokens + 2, device=device),  # after the last caption token
            torch.arange(rows, device=device),
            torch.arange(columns, device=device),
        )  # [rows * columns, 3]
        pads = image.new_zeros(_round_up(len(image)) - len(image), 3)
        table = rotary_table(torch.cat([image, pads]), self.config.axes_dims, self.config.rope_theta)
        caption = self.encode_caption(features)
        return ZImageStatic(caption, torch.cat([table, self._caption_rope(caption)]), height, width)

    def encode_caption(self, features: Tensor) -> Tensor:
        """Text features [S, cap_feat_dim] -> refined caption tokens [S rounded up to TOKEN_MULTIPLE, D]."""
        embedded = self.caption_embedder(self.caption_norm(features.to(self.caption_pad.dtype)))  # [S, D]
        caption = _pad(embedded, self.caption_pad)
        layout = Layout((len(caption),))
        cond = OneStreamCond(layout, layout.pack([self._caption_rope(caption)]))
        return layout.unpack(self.context_refiner(layout.pack([caption]), cond))[0]

    def forward(self, rows: Sequence[ZImageInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        time = self._embed_time(rows)  # [R, M]
        images = self._embed_images(rows)  # [S_image, D] each
        layout = Layout(tuple(len(image) for image in images))
        rope = layout.pack([row.static.rope[: len(image)] for row, image in zip(rows, images, strict=True)])
        hidden = self.noise_refiner(layout.pack(images), OneStreamCond(layout, rope, time), memories)

        refined = zip(rows, layout.unpack(hidden), strict=True)
        streams = [torch.cat([image, row.static.caption]) for row, image in refined]  # [S_image + S_caption, D] each
        layout = Layout(tuple(row.static.tokens for row in rows))
        cond = OneStreamCond(layout, layout.pack([row.static.rope for row in rows]), time)
        hidden = self.head(self.layers(layout.pack(streams), cond, memories), cond)  # packed, width c * PATCH * PATCH
        return [unpatchify(x, row.latents.shape, last=True) for row, x in zip(rows, layout.unpack(hidden), strict=True)]

    def _embed_time(self, rows: Sequence[ZImageInputs]) -> Tensor:
        return self.time_embedder(torch.stack([row.t for row in rows]) * self.config.t_scale)

    def _embed_images(self, rows: Sequence[ZImageInputs]) -> list[Tensor]:
        patches = [patchify(row.latents.to(self.image_pad.dtype), last=True) for row in rows]
        embedded = self.image_embedder(torch.cat(patches)).split([len(patch) for patch in patches])
        return [_pad(image, self.image_pad) for image in embedded]

    def _caption_rope(self, caption: Tensor) -> Tensor:
        """Caption tokens, pads included, stand at 1, 2, 3, ... on the first axis."""
        places = torch.arange(1, len(caption) + 1, device=caption.device)
        positions = F.pad(places[:, None], (0, 2))  # [S_caption, 3]
        return rotary_table(positions, self.config.axes_dims, self.config.rope_theta)

    def _check_size(self, caption_tokens: int, height: int, width: int) -> None:
        if height % PATCH or width % PATCH or min(height, width) < PATCH:
            raise RequestError(
                f"latents of {height}x{width} cannot be cut into {PATCH}x{PATCH} patches; use even sizes",
                param="size",
            )
        taken = (caption_tokens + 2, height // PATCH, width // PATCH)
        if any(used > length for used, length in zip(taken, self.config.axes_lens, strict=True)):
            raise RequestError(
                f"a caption of {caption_tokens} tokens (padded) with latents of {height}x{width} needs "
                f"{taken} positions, but this model has {self.config.axes_lens}; "
                "use a smaller size or a shorter prompt",
                param="size",
            )


def _round_up(tokens: int) -> int:
    return -(-tokens // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


def _pad(x: Tensor, token: Tensor) -> Tensor:
    """Append `token` [1, D] to x [S, D] until S is a multiple of TOKEN_MULTIPLE."""
    return torch.cat([x, token.expand(_round_up(len(x)) - len(x), -1)])
