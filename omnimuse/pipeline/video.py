"""Stock loops: finished video latents become frames, one latent frame of one tile, or one tile of all, at a time.

Every step is a short piece of work, so decoding can be cancelled, paused and watched, and needs memory for one piece.
For diffusers VAEs that are causal in time `DecodeVideo`: such a decoder takes the cache of its convolutions as an
argument, so the loop drives the very same module frame by frame and keeps the cache in the state. For those that know
no such cache `DecodeClip`.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; c t y x those of a piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from omnimuse.core.autoencoder import factors
from omnimuse.core.request import Request
from omnimuse.core.spec import Size
from omnimuse.pipeline.arrival import Collected
from omnimuse.pipeline.decode import PREVIEW_CELLS, shrunk
from omnimuse.pipeline.scaling import unscaled
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.tiles import Run, Tiling, blend, in_turn

TILE_ABOVE = 1280 * 720
"""Frames of more pixels than this are decoded in tiles, and others only where tiles are asked for: blended seams change
the result a little.
"""


@dataclass(frozen=True)
class Grid:
    """How a frame of `size` is cut into tiles: sides and strides in latents, overlaps in the decoder's pixels.

    The decoder makes `scale` pixels of the side of a latent. Each may still hold `patch` x `patch` in its channels.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    stride: tuple[int, int]
    overlap: tuple[int, int]
    scale: int
    patch: int

    @staticmethod
    def of(vae: Any, height: int, width: int, tile_above: int) -> Grid:
        """The grid that diffusers' `tiled_decode` uses, or one tile: for frames of at most `tile_above` pixels, and
        for those that are no larger than a tile.
        """
        ratio, patch = vae.config.scale_factor_spatial, vae.config.patch_size or 1
        tile = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        if height * width * ratio**2 <= tile_above or (height <= tile[0] // ratio and width <= tile[1] // ratio):
            return Grid.whole((height, width), ratio, patch)
        stride = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
        return Grid.cut((height, width), tile, stride, ratio, patch)

    @staticmethod
    def chosen(tiling: Tiling, size: Size, ratio: int, patch: int) -> Grid:
        """The grid of tiles whose size, and overlap, somebody chose, for a frame of `size` latents."""
        if max(size) <= tiling.cells:
            return Grid.whole(size, ratio, patch)
        stride = max(1, int(tiling.cells * (1 - tiling.overlap))) * ratio
        return Grid.cut(size, (tiling.pixels, tiling.pixels), (stride, stride), ratio, patch)

    @staticmethod
    def whole(size: Size, ratio: int, patch: int) -> Grid:
        """One tile, of which a latent makes `ratio` pixels."""
        return Grid(size, size, size, (0, 0), ratio // patch, patch)

    @staticmethod
    def cut(size: Size, tile: Size, stride: Size, ratio: int, patch: int) -> Grid:
        """The grid of a frame of `size` latents: tiles and strides in pixels; a latent makes `ratio` a side."""
        return Grid(
            size=size,
            tile=(tile[0] // ratio, tile[1] // ratio),
            stride=(stride[0] // ratio, stride[1] // ratio),
            overlap=(tile[0] // patch - stride[0] // patch, tile[1] // patch - stride[1] // patch),
            scale=ratio // patch,
            patch=patch,
        )

    @property
    def corners(self) -> list[tuple[int, int]]:
        """The upper left latent of every tile, row by row."""
        rows, columns = (range(0, size, stride) for size, stride in zip(self.size, self.stride, strict=True))
        return [(row, column) for row in rows for column in columns]


@dataclass
class Decoding:
    """What decoding remembers of one state between steps; moved and dropped with it."""

    grid: Grid
    frames: int  # latent frames of a piece
    latents: Tensor  # [1, C, f, h, w], as the decoder wants them
    video: Collected  # [F, 3, H, W]
    cache: list[Any] = field(default_factory=list)
    below: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    right: dict[int, Tensor] = field(default_factory=dict)
    run: Run = in_turn
    ranks: int = 1

    @property
    def rounds(self) -> int:
        """How often every rank decodes a tile, or has none to decode."""
        return -(-len(self.grid.corners) // self.ranks)

    @property
    def span(self) -> int:
        """How many frames are made of a latent frame, but of the first one."""
        return (self.video.shape[0] - 1) // max(1, self.latents.shape[2] - 1)

    def corners(self, turn: int) -> list[tuple[int, int]]:
        """Those of the tiles that are decoded in that round."""
        return self.grid.corners[turn * self.ranks : (turn + 1) * self.ranks]

    def cut(self, corner: tuple[int, int], frames: slice) -> Tensor:
        """The latents of a tile: [1, C, f, h, w]."""
        (row, column), (height, width) = corner, self.grid.tile
        return self.latents[:, :, frames, row : row + height, column : column + width]

    def shape(self, part: Tensor, frames: int) -> tuple[int, ...]:
        """That of what is made of latents [1, C, f, h, w]: so many frames, still packed."""
        grid = self.grid
        return (3 * grid.patch**2, frames, part.shape[3] * grid.scale, part.shape[4] * grid.scale)


@dataclass(frozen=True)
class DecodeVideo(Loop):
    """From the slot `latents` [C, f, h, w] to `video`: float32 [F, 3, H, W] in [0, 1]; the latents if asked for."""

    tile_above: int = TILE_ABOVE
    latents: str = "latents"
    name: str = "decode"
    writes: tuple[str, ...] = ("video",)
    uses: tuple[str, ...] = ("vae",)
    tiles: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.latents,)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        if state.request.params.output_type == "latent":
            return [Step(0)]  # they are handed over as they are
        vae, latents = ctx.components["vae"], state[self.latents]
        (_, f, h, w), (span, ratio) = latents.shape, factors(vae.config)
        tiling = ctx.drawing(state.request).tiling
        if tiling is not None and tiling.own:
            grid = Grid.chosen(tiling, (h, w), ratio, self.patch(vae))
        else:
            grid = self.grid(vae, h, w, tiling is not None)
        video = Collected((1 + (f - 1) * span, 3, h * ratio, w * ratio), ctx.send)
        frames = f if self.whole_clips else 1
        decoding = Decoding(grid, frames, unscaled(vae, vae.config, latents)[None], video)
        if tiling is not None:
            decoding.run, decoding.ranks = tiling.run, tiling.ranks
        state.working["decode"] = decoding
        return [Step(index) for index in range(decoding.rounds * f // frames)]

    def grid(self, vae: Any, height: int, width: int, tiled: bool = False) -> Grid:
        """How a frame of so many latents is cut into tiles; `tiled` if they are asked for."""
        return Grid.of(vae, height, width, 0 if tiled else self.tile_above)

    def patch(self, vae: Any) -> int:
        """The pixels of a side that the decoder leaves in its channels."""
        return vae.config.patch_size or 1

    def side(self, vae: Any) -> int:
        """The pixels of a side of a tile."""
        return int(vae.tile_sample_min_height)

    def strides(self, vae: Any) -> Size:
        """The same, and the pixels from the beginning of one tile to that of the next."""
        return self.side(vae), int(vae.tile_sample_stride_height)

    def tiled(self, ctx: Context, request: Request) -> Size | None:
        tiling, (width, height) = ctx.drawing(request).tiling, request.size
        tile = tiling.strides if tiling and tiling.own else self.strides(ctx.components.wherever("vae"))
        asked = tiling is not None or self.whole_clips or width * height > self.tile_above
        return tile if asked and max(width, height) > tile[0] else None

    def cost(self, ctx: Context, state: State) -> int:
        """A piece of latents counts as many tokens as it has cells: a convolution sees them one by one."""
        if "decode" not in state.working:
            return 1
        decoding = state.working["decode"]
        height, width = decoding.grid.tile
        return height * width * decoding.frames

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if "decode" in state.working:
            self.decode(ctx.components["vae"], state.working["decode"], step.index)

    def decode(self, vae: Any, decoding: Decoding, index: int) -> None:
        """One step's work."""
        decode_piece(vae, decoding, index)

    def finish(self, ctx: Context, state: State) -> None:
        decoding = state.working.get("decode")
        state["video"] = state[self.latents] if decoding is None else decoding.video.finished()


@dataclass(frozen=True)
class DecodeClip(DecodeVideo):
    """The same by a VAE that decodes all frames of a tile at once: a step for every tile.

    Tiles have sides of `tile` pixels and begin every `stride`; frames that are no larger are decoded whole. Where the
    decoder needs `least` latents a side, narrower ones are repeated.
    """

    tile: int = 256
    stride: int = 192
    least: int = 1
    whole_clips: ClassVar[bool] = True

    def patch(self, vae: Any) -> int:
        return 1

    def side(self, vae: Any) -> int:
        return self.tile

    def strides(self, vae: Any) -> Size:
        return self.tile, self.stride

    def grid(self, vae: Any, height: int, width: int, tiled: bool = False) -> Grid:
        _, ratio = factors(vae.config)
        tile, stride, overlap = self.tile // ratio, self.stride // ratio, self.tile - self.stride
        if max(height, width) <= tile:
            return Grid.whole((height, width), ratio, 1)
        return Grid((height, width), (tile, tile), (stride, stride), (overlap, overlap), ratio, 1)

    def decode(self, vae: Any, decoding: Decoding, index: int) -> None:
        corners, frames = decoding.corners(index), decoding.video.shape[0]
        parts = [decoding.cut(corner, slice(None)) for corner in corners]
        shapes = [decoding.shape(part, frames) for part in parts]
        for corner, piece in zip(
            corners, decoding.run(lambda part: decode_clip(vae, part, self.least), parts, shapes), strict=True
        ):
            put_piece(decoding, corner, 0, piece, 0)


def decode_piece(vae: Any, decoding: Decoding, index: int) -> None:
    """Decode latent frame `index % f` of the tiles of round `index // f` into the video."""
    turn, frame = divmod(index, decoding.latents.shape[2])
    corners, count = decoding.corners(turn), decoding.span if frame else 1
    if frame == 0:
        decoding.cache = fresh_cache(vae)
    parts = [decoding.cut(corner, slice(frame, frame + 1)) for corner in corners]
    shapes = [decoding.shape(part, count) for part in parts]
    pieces = decoding.run(lambda part: decode_frames(vae, part, decoding.cache)[0], parts, shapes)  # [c, t, y, x] each
    for corner, piece in zip(corners, pieces, strict=True):
        put_piece(decoding, corner, frame, piece, 1 + (frame - 1) * count if frame else 0)


def decode_clip(vae: Any, latents: Tensor, least: int) -> Tensor:
    """Latents [1, C, f, h, w] -> frames [3, F, H, W], mostly in [-1, 1]; sides of less than `least` are repeated."""
    times = [-(-least // side) for side in latents.shape[3:]]
    pixels = vae.decode(latents.repeat(1, 1, 1, *times), return_dict=False)[0][0]
    height, width = (side // count for side, count in zip(pixels.shape[2:], times, strict=True))
    return pixels[:, :, :height, :width]


def put_piece(decoding: Decoding, corner: tuple[int, int], frame: int, piece: Tensor, start: int) -> None:
    """Blend the frames [c, t, y, x] of the tile at `corner` with its neighbours, and put them into the video, the first
    as its frame number `start`. `frame` is what tells them from others of that tile.
    """
    grid, (row, column) = decoding.grid, corner
    if row:
        blend(decoding.below[column, frame], piece, grid.overlap[0], dim=2)
    if column:
        blend(decoding.right[frame], piece, grid.overlap[1], dim=3)
    if len(grid.corners) > 1:
        decoding.below[column, frame] = piece[:, :, -grid.overlap[0] :].clone()
        decoding.right[frame] = piece[:, :, :, -grid.overlap[1] :].clone()
    height, width = (side * grid.scale for side in grid.stride)
    pixels = to_pixels(piece[:, :, :height, :width], grid.patch)  # [t, 3, y, x]
    top, left = (corner * grid.scale * grid.patch for corner in (row, column))
    starts = (start, 0, top, left)
    place = tuple(slice(at, at + size) for at, size in zip(starts, pixels.shape, strict=True))
    decoding.video.put(place, pixels)


def fresh_cache(vae: Any) -> list[Any]:
    """An empty place for every convolution of the decoder, to be filled by the first frame."""
    return [None] * sum(isinstance(module, nn.Conv3d) for module in vae.decoder.modules())


def decode_frames(vae: Any, latents: Tensor, cache: list[Any]) -> Tensor:
    """The next latent frame [1, C, 1, h, w] -> its frames [1, c, t, y, x], still packed; updates `cache`."""
    first = cache[0] is None
    return vae.decoder(vae.post_quant_conv(latents), feat_cache=cache, feat_idx=[0], first_chunk=first)


def to_pixels(piece: Tensor, patch: int) -> Tensor:
    """Decoder output [3 * patch * patch, t, y, x] in [-1, 1] -> float32 [t, 3, y * patch, x * patch] in [0, 1]."""
    _, t, y, x = piece.shape
    unpacked = piece.reshape(3, patch, patch, t, y, x).permute(3, 0, 4, 2, 5, 1)  # [t, 3, y, patch, x, patch]
    pixels = torch.empty(unpacked.shape, dtype=torch.float32, device=piece.device).copy_(unpacked)
    pixels.clamp_(-1, 1).mul_(0.5).add_(0.5).clamp_(0, 1)  # in place: there is no room for a video several times
    return pixels.reshape(t, 3, y * patch, x * patch)


def small_middle_frame(latents: Tensor) -> Tensor:
    """The middle frame of latents [C, f, h, w], shrunk to a few cells: [C, h', w']."""
    return shrunk(latents[:, latents.shape[1] // 2], PREVIEW_CELLS)


def preview_middle_frame(ctx: Context, latents: Tensor) -> Tensor:
    """A small picture of unfinished latents [C, f, h, w]: the middle frame, shrunk to a few cells and decoded alone.

    -> float32 [3, H', W'] in [0, 1].
    """
    vae, small = ctx.components["vae"], small_middle_frame(latents)
    decoded = decode_frames(vae, unscaled(vae, vae.config, small)[None, :, None], fresh_cache(vae))  # [1, c, 1, y, x]
    return to_pixels(decoded[0], vae.config.patch_size or 1)[0]


def preview_middle_alone(ctx: Context, latents: Tensor, least: int = 1) -> Tensor:
    """The same by a VAE that decodes all frames at once: a clip of the middle frame alone."""
    vae, small = ctx.components["vae"], small_middle_frame(latents)
    return to_pixels(decode_clip(vae, unscaled(vae, vae.config, small)[None, :, None], least), 1)[0]
