"""Transformers of pictures whose text and image have weights of their own and attend together (arXiv 2403.03206).

A network of this kind has blocks with two streams and, perhaps, blocks with one after them (as FLUX.1 came with). All
blocks see one sequence per row, text tokens before image tokens; rows of any size share a forward: their sequences are
laid end to end. A family subclasses `TwoStreamNetwork` and says how its text, its times and its positions are made.

Letters: R rows, S tokens, D width, N heads, H head dim; c f h w latent channels, frames, height, width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.patches import PATCH as PATCH  # families know it as that of their blocks
from omnimuse.components.patches import patchify, unpatchify
from omnimuse.components.two_stream_plan import two_stream_plan
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cut, Cutting
from omnimuse.layers.kernels import Beside, GatedSum, Rotation
from omnimuse.layers.network import Network
from omnimuse.layers.norm import ModulatedNorm, QueryKeyNorm
from omnimuse.layers.stack import Block, BlockStack, ChainedStack, Memory

EPS = 1e-6
TIME_SCALE = 1000.0  # times in (0, 1] are multiplied by this before they are embedded


@dataclass(frozen=True)
class Blocks:
    """What a network's blocks are: how many with two streams and with one, how wide, with how many heads.

    MLPs are `mlp_ratio` times as wide; `gated` ones are SwiGLU, whose gate is the first half or the second, others have
    a tanh GELU. With `shared` modulation all blocks are scaled, shifted and gated alike. Queries and keys may be
    `normed`; for `rounds_once` see `QueryKeyNorm`. What modulates is `vector` wide (0: as all else).
    """

    dim: int
    heads: int
    double: int
    single: int = 0
    mlp_ratio: float = 4.0
    gated: Literal["", "first", "second"] = ""
    biased: bool = True
    shared: bool = False
    normed: bool = True
    rounds_once: bool = True
    vector: int = 0
    eps: float = EPS

    @property
    def hidden(self) -> int:
        """The width within an MLP."""
        return int(self.dim * self.mlp_ratio)

    @property
    def entering(self) -> int:
        """The width that an MLP's first linear layer makes: of a gated one, values and gates."""
        return (2 if self.gated else 1) * self.hidden

    def linear(self, before: int, after: int) -> nn.Linear:
        """A linear layer of such a network."""
        return nn.Linear(before, after, bias=self.biased)

    def activation(self) -> nn.Module:
        """What stands between the linear layers of an MLP."""
        return SwiGLU(first=self.gated == "first") if self.gated else nn.GELU("tanh")


def check_axes(axes: Sequence[int], head_dim: int) -> None:
    """ModelError unless the rotary positions of a network have three axes, as many numbers together as a head."""
    if len(axes) != 3 or sum(axes) != head_dim:
        raise ModelError(
            f"transformer/config.json: axes_dims_rope={axes}, "
            f"attention_head_dim={head_dim}; there must be three axes whose sum is the head dim"
        )


@dataclass(frozen=True)
class TwoStreamStatic:
    """What stays the same over all steps of one image; families add what else they need."""

    text: Tensor  # [S_text, D]
    rope: Tensor | None  # [S_text + S_image, 2, H/2, 2], float32; None where tokens have their places in another way
    shown: Tensor | None = field(default=None, kw_only=True)
    """Pictures that were given, embedded, [S_shown, D]: they follow the image's own tokens, and count as such."""
    beside: Tensor | None = field(default=None, kw_only=True)
    """More channels of the image's own tokens, [c', h, w], which stand behind those of the latents."""

    @property
    def text_tokens(self) -> int:
        """How many tokens the blocks see beside those of the image that is drawn."""
        return len(self.text) + (0 if self.shown is None else len(self.shown))


Modulated = tuple[Tensor, Sequence[Tensor]]
"""The tokens of one kind, and what modulates them."""
Static = TypeVar("Static", bound=TwoStreamStatic)


@dataclass(frozen=True)
class TwoStreamInputs(Generic[Static]):
    """One row: noisy latents [c, h, w], or [c, f, h, w] of a video, the scalar t as the family counts time, and what
    stays the same.
    """

    latents: Tensor
    t: Tensor
    static: Static


@dataclass(frozen=True)
class Still:
    """Which image tokens belong to pictures that were shown, and what scales, shifts and gates those: they do not
    change with time.
    """

    shown: Tensor  # bool, packed as the images are, [R, S, 1] or [1, T, 1]
    vector: Tensor  # [R, D]

    def select(self, image: Layout, rows: Sequence[int]) -> Still:
        return Still(image.take(self.shown, rows), torch.stack([self.vector[row] for row in rows]))

    def cut(self, image: Layout, part: Cut) -> Still:
        return Still(image.share(self.shown, part), self.vector)


@dataclass(frozen=True)
class TwoStreamCond:
    """What every block receives beside the hidden states. A row is its text tokens, then its image tokens."""

    layout: Layout  # both
    text: Layout
    image: Layout
    rope: Tensor | None  # packed, [R, S, 2, H/2, 2] or [1, T, 2, H/2, 2]
    vector: Tensor  # [R, D], or as wide as what it is made of: what scales, shifts and gates every block
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Where all blocks are modulated alike, how: by kind of stream, [R, 6D] or [R, 3D]."""
    still: Still | None = None

    @property
    def dense(self) -> bool:
        """Whether the texts are equally long, and the images, too."""
        return self.text.dense and self.image.dense

    def select(self, rows: Sequence[int]) -> Self:
        layout, text, image = (part.select(rows) for part in (self.layout, self.text, self.image))
        vector, *shared = (torch.stack([x[row] for row in rows]) for x in (self.vector, *self.shared.values()))
        kinds = dict(zip(self.shared, shared, strict=True))
        rope = None if self.rope is None else self.layout.take(self.rope, rows)
        still = None if self.still is None else self.still.select(self.image, rows)
        whose = {"layout": layout, "text": text, "image": image}
        return replace(self, **whose, rope=rope, vector=vector, shared=kinds, still=still)

    def cut(self, part: Cut) -> Self | None:
        layout, text, image = (each.cut(part) for each in (self.layout, self.text, self.image))
        rope = None if self.rope is None else self.layout.share(self.rope, part)
        still = None if self.still is None else self.still.cut(self.image, part)
        return replace(self, layout=layout, text=text, image=image, rope=rope, still=still)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A tensor packed by `layout` -> its text packed by `text` and its image packed by `image`."""
        if self.dense:
            return x[:, : self.text.length], x[:, self.text.length :]
        lengths = zip(self.text.lengths, self.image.lengths, strict=True)
        rows = [row.split(pair) for row, pair in zip(self.layout.unpack(x), lengths, strict=True)]
        return self.text.pack([row[0] for row in rows]), self.image.pack([row[1] for row in rows])

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """The reverse of `split`."""
        if self.dense:
            return torch.cat([text, image], dim=1)
        rows = zip(self.text.unpack(text), self.image.unpack(image), strict=True)
        joined = torch.cat([part for row in rows for part in row])  # [T, *]
        rows_here = len(self.layout.lengths) if self.layout.dense else 1
        return joined.unflatten(0, (rows_here, len(joined) // rows_here))


class TwoStreamNetwork(Network, Generic[Static]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row (of videos [c, f, h, w]).

    Tokens have `channels` numbers on the way in and `out` on the way out, the same if that is not said.
    """

    packing: ClassVar[Literal["varlen"]] = "varlen"
    patch: ClassVar[int] = PATCH
    """Latents a side of one token."""

    def __init__(
        self,
        blocks: Blocks,
        channels: int,
        text_width: int,
        *,
        out: int | None = None,
        double: Iterable[Block[Any]] | None = None,
    ) -> None:
        """`double` are blocks of the family's own in place of the plain ones with two streams."""
        super().__init__()
        self.blocks = blocks
        self.image_embedder: nn.Module = blocks.linear(channels, blocks.dim)
        self.text_embedder = blocks.linear(text_width, blocks.dim)
        widths = {"text": 6, "image": 6, "single": 3} if blocks.shared else {}
        self.modulations = nn.ModuleDict(
            {kind: blocks.linear(blocks.dim, n * blocks.dim) for kind, n in widths.items()}
        )
        self.stack = ChainedStack(
            {
                "double_blocks": double or (DoubleBlock(blocks) for _ in range(blocks.double)),
                "single_blocks": (SingleBlock(blocks) for _ in range(blocks.single)),
            }
        )
        self.head = Head(blocks, out or channels)

    @abstractmethod
    def vector(self, rows: Sequence[TwoStreamInputs[Static]]) -> Tensor:
        """What scales, shifts and gates every block, the activation done: [R, D]."""

    def still_vector(self, rows: Sequence[TwoStreamInputs[Static]]) -> Tensor | None:
        """The same for the pictures that were shown, [R, D], in a network for which these stand still in time."""
        return None

    def texts(self, rows: Sequence[TwoStreamInputs[Static]]) -> list[Tensor]:
        """The tokens of the rows' texts as the blocks first see them, [S_text, D] each, at these times."""
        return [row.static.text for row in rows]

    def images(self, rows: Sequence[TwoStreamInputs[Static]]) -> list[Tensor]:
        """The tokens of the rows' images, [S_image, D] each, then those of what they are shown."""
        whole = [row.latents if (more := row.static.beside) is None else torch.cat([row.latents, more]) for row in rows]
        images = zip(self.embed(whole), (row.static.shown for row in rows), strict=True)
        return [image if shown is None else torch.cat([image, shown]) for image, shown in images]

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.stack}

    def forward(
        self, rows: Sequence[TwoStreamInputs[Static]], memories: Sequence[Memory] | None = None
    ) -> list[Tensor]:
        images = self.images(rows)  # [S_image, D] each
        cond = self._condition(rows, Layout(tuple(len(image) for image in images)))
        text = cond.text.pack(self.texts(rows))
        hidden = self.stack(cond.join(text, cond.image.pack(images)), cond, memories)  # packed, width D
        _, image = cond.split(hidden)
        patches = cond.image.unpack(self.head(image, cond))  # [S_image, 4c] each, then those of what was shown
        return [self.restore(x, row.latents.shape) for row, x in zip(rows, patches, strict=True)]

    def plan(self) -> Mapping[str, Cutting]:
        double, single = (any(True for _ in part.children()) for part in self.stack.children())
        entering = 2 if self.blocks.gated else 1
        return two_stream_plan(double=double, single=single, entering=entering, shared=self.blocks.shared)

    def times(self, rows: Sequence[TwoStreamInputs[Static]]) -> Tensor:
        """The times of the rows as the time's embedding takes them: [R]."""
        return torch.stack([row.t for row in rows]).to(self.text_embedder.weight.dtype) * TIME_SCALE

    def _condition(self, rows: Sequence[TwoStreamInputs[Static]], image: Layout) -> TwoStreamCond:
        text = Layout(tuple(len(row.static.text) for row in rows))
        pairs = tuple(zip(text.lengths, image.lengths, strict=True))
        layout = Layout(tuple(map(sum, pairs)), pairs)
        vector = self.vector(rows)
        shared = {kind: modulation(vector) for kind, modulation in self.modulations.items()}
        tables = [row.static.rope for row in rows if row.static.rope is not None]
        rope, still = layout.pack(tables) if tables else None, self._still(rows, image)
        return TwoStreamCond(layout, text, image, rope, vector, shared, still)

    def _still(self, rows: Sequence[TwoStreamInputs[Static]], image: Layout) -> Still | None:
        if (vector := self.still_vector(rows)) is None:
            return None
        shown = [0 if row.static.shown is None else len(row.static.shown) for row in rows]
        lengths = zip(image.lengths, shown, strict=True)
        marks = [torch.arange(length, device=vector.device) >= length - count for length, count in lengths]
        return Still(image.pack([mark[:, None] for mark in marks]), vector)

    def embed(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents [c, h, w] or [c, f, h, w] of any sizes -> their tokens, [S, D] each."""
        patches = [patchify(each.to(self.text_embedder.weight.dtype), self.patch) for each in latents]
        return list(self.image_embedder(torch.cat(patches)).split([len(patch) for patch in patches]))

    def restore(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """What the head makes of an image's tokens -> the latents [c, h, w] or [c, f, h, w] of that `size`."""
        return unpatchify(x, size, self.patch)


class DoubleBlock(Block[TwoStreamCond]):
    """Text and image, each with weights of its own, meet in one attention."""

    def __init__(self, blocks: Blocks, text: Entrance | None = None, image: Stream | None = None) -> None:
        super().__init__()
        self.text = text or Stream(blocks, "text")
        self.image = image or Stream(blocks, "image")
        self.turn = Rotation()
        self.core = Attention(blocks.heads, blocks.dim // blocks.heads, "joint", category="self")

    def forward(self, hidden: Tensor, cond: TwoStreamCond) -> Tensor:
        text, image = cond.split(hidden)
        text_mods, image_mods = self.text.modulate(cond, cond.text), self.image.modulate(cond, cond.image)
        text_x, image_x = cond.split(self._meet((text, text_mods), (image, image_mods), cond))
        image = self.beside(image, cond, image_mods)
        return cond.join(self.text.leave(text, text_x, text_mods), self.image.leave(image, image_x, image_mods))

    def _meet(self, text: Modulated, image: Modulated, cond: TwoStreamCond) -> Tensor:
        """What the attention gives, [B, S, D]; of queries, keys and values nothing is kept beside what comes after."""
        heads = self.core.num_heads
        entered = zip(self.text.enter(*text, heads), self.image.enter(*image, heads), strict=True)
        qk, v = (cond.join(*pair) for pair in entered)  # packed
        q, k = self.turn(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        return self.core(q, k, v, cond.layout).flatten(-2)

    def beside(self, image: Tensor, cond: TwoStreamCond, mods: Sequence[Tensor]) -> Tensor:
        """The image [B, S, D] and what is added to it beside what the attention gives; here nothing."""
        return image

    def probe(self, hidden: Tensor, cond: TwoStreamCond) -> Tensor:
        """The image as the attention sees it; zeros for the text, which has no part in the relative change."""
        text, image = cond.split(hidden)
        shift, scale, *_ = self.image.modulate(cond, cond.image)
        return cond.join(torch.zeros_like(text), self.image.norm(image, scale, shift))

    def telling(self, change: Tensor, cond: TwoStreamCond) -> Tensor:
        """That of the image, as in the reference implementations."""
        text, image = cond.split(change)
        return cond.join(torch.zeros_like(text), image)


class Entrance(nn.Module):
    """What the tokens of one kind bring to the attention of a double block, and what is left of them: here nothing new.

    `parts` vectors modulate them.
    """

    def __init__(self, blocks: Blocks, kind: Literal["text", "image"], parts: int) -> None:
        super().__init__()
        self.kind = kind
        self.parts = parts
        self.modulation: nn.Module | None = None if blocks.shared else blocks.linear(blocks.dim, parts * blocks.dim)
        self.norm = ModulatedNorm(EPS)
        self.qkv = Projection(blocks)

    def modulate(self, cond: TwoStreamCond, layout: Layout) -> tuple[Tensor, ...]:
        """Shift and scale before the attention, and whatever else, each one vector per row made to broadcast."""
        if self.modulation is None:
            return layout.expand(cond.shared[self.kind]).chunk(self.parts, dim=-1)
        mods = layout.expand(self.modulation(cond.vector))  # [R, 1, parts * D] or [1, T, parts * D]
        if self.kind == "image" and cond.still is not None:
            mods = torch.where(cond.still.shown, layout.expand(self.modulation(cond.still.vector)), mods)
        return mods.chunk(self.parts, dim=-1)

    def enter(self, x: Tensor, mods: Sequence[Tensor], heads: int) -> tuple[Tensor, Tensor]:
        """Queries and keys, and values, of tokens [B, S, D], in `heads` heads."""
        shift, scale = mods[:2]
        qk, v, _ = self.qkv(self.norm(x, scale, shift), heads)
        return qk, v

    def leave(self, x: Tensor, attended: Tensor, mods: Sequence[Tensor]) -> Tensor:
        """The tokens [B, S, D] after the block; `attended` is what the attention gave."""
        return x


class Stream(Entrance):
    """One half of a double block, for the tokens of one kind: all but the attention itself.

    They are modulated by shift, scale and gate of the attention, then of the MLP; further `parts` are the block's.
    """

    def __init__(self, blocks: Blocks, kind: Literal["text", "image"], parts: int = 6) -> None:
        super().__init__(blocks, kind, parts)
        self.to_out = blocks.linear(blocks.dim, blocks.dim)
        self.add = GatedSum()
        self.mlp = nn.Sequential(
            blocks.linear(blocks.dim, blocks.entering), blocks.activation(), blocks.linear(blocks.hidden, blocks.dim)
        )

    def leave(self, x: Tensor, attended: Tensor, mods: Sequence[Tensor]) -> Tensor:
        gate, shift, scale, mlp_gate = mods[2:6]
        x = self.add(x, gate, self.to_out(attended))
        return _finite(self.add(x, mlp_gate, self.mlp(self.norm(x, scale, shift))))


class SingleBlock(Block[TwoStreamCond]):
    """Text and image as one sequence: attention and MLP side by side, from one norm to one sum."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        dim = blocks.dim
        self.modulation: nn.Module | None = None if blocks.shared else blocks.linear(dim, 3 * dim)
        self.norm = ModulatedNorm(EPS)
        self.qkv = Projection(blocks, beside=blocks.entering)
        self.core = Attention(blocks.heads, dim // blocks.heads, "single", category="self")
        self.beside = Beside(blocks.activation())
        self.to_out = blocks.linear(dim + blocks.hidden, dim)
        self.add = GatedSum()

    def forward(self, hidden: Tensor, cond: TwoStreamCond) -> Tensor:
        x, gate = self._enter(hidden, cond)
        x, mlp = self._attend(x, cond)
        x = self.to_out(self.beside(x, mlp))
        return _finite(self.add(hidden, gate, x))

    def _attend(self, x: Tensor, cond: TwoStreamCond) -> tuple[Tensor, Tensor]:
        """What the attention gives, [B, S, D], and what the MLP begins with; queries and keys are gone then."""
        qk, v, mlp = self.qkv(x, self.core.num_heads, cond.rope)
        q, k = qk.unbind(2)  # [B, S, N, H] each
        return self.core(q, k, v, cond.layout).flatten(-2), mlp

    def probe(self, hidden: Tensor, cond: TwoStreamCond) -> Tensor:
        return self._enter(hidden, cond)[0]

    def _enter(self, hidden: Tensor, cond: TwoStreamCond) -> tuple[Tensor, Tensor]:
        """What attention and MLP see, and the gate of what they add."""
        mods = cond.shared["single"] if self.modulation is None else self.modulation(cond.vector)  # [R, 3D]
        shift, scale, gate = cond.layout.expand(mods).chunk(3, dim=-1)
        return self.norm(hidden, scale, shift), gate


class Projection(nn.Module):
    """Tokens [B, S, D] -> queries and keys, perhaps normed, perhaps turned, [B, S, 2, N, H], and values [B, S, N, H].

    Perhaps also what an MLP `beside` the attention begins with, [B, S, beside]: one product makes all. The attention
    says how many heads there are.
    """

    def __init__(self, blocks: Blocks, beside: int = 0) -> None:
        super().__init__()
        self.head_dim = blocks.dim // blocks.heads
        self.linear = blocks.linear(blocks.dim, 3 * blocks.dim + beside)
        norm = QueryKeyNorm(self.head_dim, EPS, rounds_once=blocks.rounds_once) if blocks.normed else Rotation()
        self.norm_qk: QueryKeyNorm | Rotation = norm

    def forward(self, x: Tensor, heads: int, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        qkv, beside = self.linear(x).tensor_split((3 * heads * self.head_dim,), dim=-1)
        qkv = qkv.unflatten(-1, (3, heads, self.head_dim))  # [B, S, 3, N, H]
        return self.norm_qk(qkv[:, :, :2], rope), qkv[:, :, 2], beside


class SwiGLU(nn.Module):
    """One half of the channels times the SiLU of the other, the gate: the `first` half or the second."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return self.activation(left) * right if self.first else left * self.activation(right)


class Head(nn.Module):
    """The last norm, scaled and shifted by the step, and the projection to a patch; image tokens only."""

    def __init__(self, blocks: Blocks, patch_dim: int) -> None:
        super().__init__()
        self.norm = ModulatedNorm(blocks.eps)
        self.modulation: nn.Module = blocks.linear(blocks.vector or blocks.dim, 2 * blocks.dim)
        self.linear = blocks.linear(blocks.dim, patch_dim)

    def forward(self, image: Tensor, cond: TwoStreamCond) -> Tensor:
        scale, shift = cond.image.expand(self.modulation(cond.vector)).chunk(2, dim=-1)
        return self.linear(self.norm(image, scale, shift))


def _finite(x: Tensor) -> Tensor:
    """In float16, sums may overflow; the reference clips them."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
