"""The LTX-2 transformer: video and sound, each with weights and a width of its own, which attend to each other.

The arithmetic is that of diffusers' `LTX2VideoTransformer3DModel`. What does not depend on the step, projected texts
and rotary tables, is computed once per request by `LTX2Transformer.prepare`. A row's hidden states are one sequence, as
runners of blocks want them: the tokens of the video, then those of the sound, of which several may fill a line. Rows of
any size share a forward: they are laid end to end.

Letters: R rows, P spans (tokens that share a time), S tokens, L text tokens, D width, N heads, H head dim; c f h w
latent channels, frames, height, width; a l m channels, length and bands of the sound's latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import pi, prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.two_widths import join, layout_of, split
from omnimuse.components.wide_attention import PLAN, TurningAttention, WideAttention
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Columns, Cut, Cutting, Rows
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.network import Network
from omnimuse.layers.rotary import rotations
from omnimuse.layers.stack import Block, BlockStack, Memory
from omnimuse.loader.facts import read_facts

EPS = 1e-6
THETA = 10_000.0
SPAN, SIDE, SOUND_SPAN = 8, 32, 4
"""Frames and pixels a side of a video's latent, and bands' frames of a sound's."""
LONGEST, WIDEST = 20, 2048
"""Seconds and pixels that positions are counted in parts of."""
FIXED: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t", "causal_offset"), (1,)),
    **dict.fromkeys(("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), (False,)),
    **dict.fromkeys(("norm_elementwise_affine", "perturbed_attn", "use_keyframes_abs_pos_embedding"), (False,)),
    **dict.fromkeys(("attention_bias", "attention_out_bias", "use_prompt_embeddings", "ff_bias"), (True,)),
    **dict.fromkeys(("audio_ff_bias", "rope_double_precision"), (True,)),
    **dict.fromkeys(("timestep_scale_multiplier", "cross_attn_timestep_scale_multiplier"), (1000,)),
    **dict.fromkeys(("pos_embed_max_pos", "audio_pos_embed_max_pos"), (LONGEST,)),
    **dict.fromkeys(("base_height", "base_width"), (WIDEST,)),
    "vae_scale_factors": ((SPAN, SIDE, SIDE),),
    "audio_scale_factor": (SOUND_SPAN,),
    "activation_fn": ("gelu-approximate",),
    "qk_norm": ("rms_norm_across_heads",),
    "norm_eps": (EPS,),
    "rope_theta": (THETA,),
}
"""Options of the configuration that this file computes in one way only."""
IDLE = {"use_prompt_adaln_single"}


@dataclass(frozen=True)
class LTX2Config:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 19B model.

    Numbers of a head that turn together are neighbours (`rope_type` "interleaved") or half a head apart ("split").
    """

    num_attention_heads: int = 32
    attention_head_dim: int = 128
    cross_attention_dim: int = 4096
    in_channels: int = 128
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_cross_attention_dim: int = 2048
    audio_in_channels: int = 128
    audio_sampling_rate: int = 16_000
    audio_hop_length: int = 160
    num_layers: int = 48
    caption_channels: int = 3840
    rope_type: str = "interleaved"

    def __post_init__(self) -> None:
        widths = (self.cross_attention_dim, self.audio_cross_attention_dim)
        if widths != (self.dim, self.sound_dim) or self.dim % self.sound_dim:
            raise ModelError(
                f"transformer/config.json: the texts have widths {widths} and the tokens {(self.dim, self.sound_dim)}; "
                "they must be equal, and the video's a multiple of the sound's"
            )
        if self.num_attention_heads != self.audio_num_attention_heads or self.rope_type not in ("interleaved", "split"):
            raise ModelError(
                f"transformer/config.json: num_attention_heads={self.num_attention_heads}, audio_num_attention_heads="
                f"{self.audio_num_attention_heads}, rope_type={self.rope_type!r}; there must be equally many heads, "
                "and positions of the type interleaved or split"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LTX2Config:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        out = {
            f"{kind}out_channels": (None, config.get(f"{kind}in_channels", cls.in_channels)) for kind in ("", "audio_")
        }
        return read_facts(cls, config, "transformer/config.json", {**FIXED, **out}, IDLE)

    @property
    def dim(self) -> int:
        """D of the video."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sound_dim(self) -> int:
        """D of the sound."""
        return self.audio_num_attention_heads * self.audio_attention_head_dim


@dataclass(frozen=True)
class PartStatic:
    """What stays the same over all steps for one of video and sound."""

    size: tuple[int, ...]  # (c, f, h, w) or (a, l, m)
    spans: tuple[int, ...]  # tokens that share a time: all, or those of a first frame that is given, and the others
    text: Tensor  # [L, D]
    rope: Tensor  # [S, 2, D/2, 2], float32
    meeting_rope: Tensor  # [S, 2, C/2, 2], float32, for the attention of one part to the other
    still: bool = False  # the first span is given

    def times(self, t: Tensor) -> Tensor:
        """Those of its spans at the time t []: [P]."""
        return torch.stack([t * 0 if self.still and not index else t for index in range(len(self.spans))])


@dataclass(frozen=True)
class LTX2Static:
    """What stays the same over all steps of one video with its sound. `together`: 1, or 0 if they ignore each other."""

    video: PartStatic
    sound: PartStatic
    together: Tensor  # [1]

    def begun(self) -> LTX2Static:
        """The same for a video whose first frame is given: its tokens have no time."""
        first = prod(self.video.size[2:])
        spans = tuple(length for length in (first, len(self.video.rope) - first) if length)
        return replace(self, video=replace(self.video, spans=spans, still=True))

    @property
    def text_tokens(self) -> int:
        """How many tokens there are beside those of the video."""
        return len(self.sound.rope)


@dataclass(frozen=True)
class LTX2Inputs:
    """One row: noisy latents of the video, then of the sound [c f h w + a l m], the time (0 to 1000) and the rest."""

    latents: Tensor
    t: Tensor
    static: LTX2Static


@dataclass(frozen=True)
class PartCond:
    """What blocks need of one of video and sound."""

    layout: Layout
    text_layout: Layout
    text: Tensor  # packed by text_layout
    rope: Tensor  # packed
    meeting_rope: Tensor  # packed
    spans: tuple[tuple[int, ...], ...]  # tokens that share a time, for every row
    time: Tensor  # [P, 6 D]
    meeting: Tensor  # [R, 4 D]
    gate: Tensor  # [R, D]
    even: bool = field(init=False)  # whether every row is one span; stored, as compiled code cannot ask every row

    def __post_init__(self) -> None:
        object.__setattr__(self, "even", all(len(row) == 1 for row in self.spans))

    def expand(self, per_span: Tensor) -> Tensor:
        """One vector per span, [P, D] -> what broadcasts against the packed tokens."""
        if self.even:
            return self.layout.expand(per_span)
        lengths = [length for row in self.spans for length in row]
        spans = [each.expand(length, -1) for each, length in zip(per_span.split(1), lengths, strict=True)]
        return torch.cat(spans).unflatten(0, (len(self.spans) if self.layout.dense else 1, -1))

    def select(self, rows: Sequence[int]) -> PartCond:
        times = self.time.split([len(row) for row in self.spans])
        time = torch.cat([times[row] for row in rows])
        meeting, gate = (torch.stack([x[row] for row in rows]) for x in (self.meeting, self.gate))
        rope, meeting_rope = (self.layout.take(table, rows) for table in (self.rope, self.meeting_rope))
        layout, texts = self.layout.select(rows), self.text_layout.select(rows)
        text = self.text_layout.take(self.text, rows)
        spans = tuple(self.spans[row] for row in rows)
        return PartCond(layout, texts, text, rope, meeting_rope, spans, time, meeting, gate)


@dataclass(frozen=True)
class LTX2Cond:
    """What every block receives beside the hidden states."""

    layout: Layout  # of both, in lines as wide as a token of the video
    video: PartCond
    sound: PartCond
    together: Tensor  # [R, 1]

    @property
    def dense(self) -> bool:
        """Whether the videos are equally long, the sounds and the texts, too."""
        parts = (self.video, self.sound)
        return all(part.layout.dense and part.text_layout.dense for part in parts)

    def select(self, rows: Sequence[int]) -> LTX2Cond:
        together = torch.stack([self.together[row] for row in rows])
        return LTX2Cond(self.layout.select(rows), self.video.select(rows), self.sound.select(rows), together)

    def join(self, video: Tensor, sound: Tensor) -> Tensor:
        """Tokens of both, packed by their layouts -> lines [B, *, D], packed by `layout`."""
        return join(self.layout, self.video.layout, self.sound.layout, video, sound)

    def cut(self, part: Cut) -> LTX2Cond | None:
        """None: tokens of sound stand in lines of several, which no part of the tokens can be cut from."""
        return None

    def split(self, hidden: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The reverse of `join`; tokens of the sound are `width` wide."""
        return split(self.layout, self.video.layout, self.sound.layout, hidden, width)


class LTX2Transformer(Network):
    """Predicts the velocity from video and sound to noise: one tensor [c f h w + a l m] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: LTX2Config) -> None:
        super().__init__()
        self.config = config
        self.video = LTX2Part(config.dim, config.in_channels, config.caption_channels)
        self.sound = LTX2Part(config.sound_dim, config.audio_in_channels, config.caption_channels)
        self.blocks = BlockStack(LTX2Block(config) for _ in range(config.num_layers))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LTX2Transformer:
        return cls(LTX2Config.from_dict(config))

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.blocks}

    def plan(self) -> Mapping[str, Cutting]:
        plan: dict[str, Cutting] = {f"{part}.*.linear": Columns(others=1, gather=True) for part in ("video", "sound")}
        for site in ("*.attention", "*.text_attention", "to_video", "to_sound"):
            plan |= {f"blocks.*.{site}.{part}": cut for part, cut in PLAN.items()}
        return plan | {"blocks.*.*.mlp.0": Columns(others=1), "blocks.*.*.mlp.2": Rows(others=1)}

    def prepare(
        self, texts: tuple[Tensor, Tensor], video: Sequence[int], sound: Sequence[int], fps: float, together: bool
    ) -> LTX2Static:
        """Texts for the video and for the sound [L, caption_channels], the sizes (c, f, h, w) and (a, l, m) of the
        latents, and whether the two know of each other -> what all steps share.
        """
        weight, config = self.video.proj_in.weight, self.config
        places, moments = video_places(video[1:], fps, weight.device), self._moments(sound[1], weight.device)
        seen = self.video.prepare(texts[0], video, places, places[:, :1], config.sound_dim)
        heard = self.sound.prepare(texts[1], sound, moments, moments, config.sound_dim)
        return LTX2Static(seen, heard, weight.new_full((1,), float(together)))

    def forward(self, rows: Sequence[LTX2Inputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        tokens = [self._tokens(row) for row in rows]
        videos = [self.video.proj_in(seen) for seen, _ in tokens]  # [f h w, D] each
        sounds = [self.sound.proj_in(heard) for _, heard in tokens]  # [l, D] each
        seeing, hearing = [row.static.video for row in rows], [row.static.sound for row in rows]
        now = torch.stack([row.t for row in rows])  # [R]
        times = torch.cat([part.times(row.t) for part, row in zip(seeing, rows, strict=True)])  # [P]
        video, sound = self.video.condition(seeing, times, now), self.sound.condition(hearing, now, now)
        layout = layout_of(video.layout, sound.layout, self.config.dim // self.config.sound_dim)
        cond = LTX2Cond(layout, video, sound, torch.stack([row.static.together for row in rows]))
        hidden = cond.join(video.layout.pack(videos), sound.layout.pack(sounds))
        hidden = self.blocks(hidden, cond, memories)
        last = cond.split(hidden, self.config.sound_dim)
        seen, heard = self.video.leave(last[0], video, times), self.sound.leave(last[1], sound, now)
        bands = [each.unflatten(1, (row.static.sound.size[0], -1)) for row, each in zip(rows, heard, strict=True)]
        parts = zip(seen, bands, strict=True)
        return [torch.cat([one.T.flatten(), other.transpose(0, 1).flatten()]) for one, other in parts]

    def _tokens(self, row: LTX2Inputs) -> tuple[Tensor, Tensor]:
        """The latents of a row as tokens, [f h w, c] and [l, a m]."""
        sizes = row.static.video.size, row.static.sound.size
        video, sound = row.latents.to(self.video.proj_in.weight).split([prod(size) for size in sizes])
        return video.view(sizes[0][0], -1).T, sound.view(sizes[1]).transpose(0, 1).flatten(1)

    def _moments(self, length: int, device: torch.device) -> Tensor:
        """The middles of the sound's latents, as parts of the longest: [l, 1]."""
        hop, rate = self.config.audio_hop_length, self.config.audio_sampling_rate
        starts = torch.arange(length, dtype=torch.float32, device=device)
        ends = ((starts + step) * SOUND_SPAN + 1 - SOUND_SPAN for step in (0, 1))
        start, end = (each.clip(min=0) * hop / rate for each in ends)
        return ((start + end) / 2.0 / LONGEST)[:, None]


def video_places(size: Sequence[int], fps: float, device: torch.device) -> Tensor:
    """The middles of a video's latents, (f, h, w) of them, in seconds and pixels as parts of the most: [f h w, 3]."""
    axes = list[Tensor]()
    for length, step, most in zip(size, (SPAN, SIDE, SIDE), (LONGEST, WIDEST, WIDEST), strict=True):
        starts = torch.arange(length, dtype=torch.float32, device=device)
        start, end = starts * step, (starts + 1) * step
        if not axes:  # the first latent frame stands for one frame
            start, end = ((each + 1 - step).clamp(min=0) / fps for each in (start, end))
        axes.append((start + end) / 2.0 / most)
    return torch.cartesian_prod(*axes)


def rotary(places: Tensor, dim: int) -> Tensor:
    """The rotations [S, 2, dim/2, 2] of all heads together, at places [S, A] in parts of the most."""
    axes = places.shape[1]
    powers = torch.linspace(0.0, 1.0, dim // (2 * axes), dtype=torch.float64, device=places.device)
    frequencies = (THETA**powers * pi / 2.0).float()
    angles = ((places[:, :, None] * 2 - 1) * frequencies).transpose(1, 2).flatten(1)  # [S, axes * frequencies]
    return rotations(F.pad(angles, (dim // 2 - angles.shape[1], 0)))  # what is too much does not turn


class LTX2Part(nn.Module):
    """What stands around the blocks for one of video and sound: its texts, its times, its way in and out."""

    def __init__(self, dim: int, channels: int, text_width: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj_in = nn.Linear(channels, dim)
        self.caption = nn.Sequential(nn.Linear(text_width, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.clock, self.meeting_clock, self.gate_clock = LTX2Clock(dim, 6), LTX2Clock(dim, 4), LTX2Clock(dim, 1)
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, dim))
        self.proj_out = nn.Linear(dim, channels)

    def prepare(
        self, text: Tensor, size: Sequence[int], places: Tensor, meeting_places: Tensor, meeting_dim: int
    ) -> PartStatic:
        """What all steps share, of tokens at these places."""
        read = self.caption(text.to(self.proj_in.weight))
        ropes = rotary(places, self.dim), rotary(meeting_places, meeting_dim)
        return PartStatic(tuple(size), (len(ropes[0]),), read, *ropes)

    def condition(self, parts: Sequence[PartStatic], times: Tensor, now: Tensor) -> PartCond:
        """What the blocks need at times [P] of the spans, and [R] of the rows, by which the parts meet."""
        layout, texts = Layout(tuple(len(p.rope) for p in parts)), Layout(tuple(len(p.text) for p in parts))
        text = texts.pack([part.text for part in parts])
        ropes = layout.pack([part.rope for part in parts]), layout.pack([part.meeting_rope for part in parts])
        mods = self.clock(times), self.meeting_clock(now), self.gate_clock(now)
        return PartCond(layout, texts, text, *ropes, tuple(part.spans for part in parts), *mods)

    def leave(self, x: Tensor, cond: PartCond, times: Tensor) -> list[Tensor]:
        """Packed tokens -> their numbers, [S, channels] each."""
        shift, scale = (self.scale_shift_table + self.clock.embedder(times)[:, None]).unbind(1)  # [P, D] each
        return cond.layout.unpack(self.proj_out(self.norm(x) * (1 + cond.expand(scale)) + cond.expand(shift)))


class LTX2Clock(nn.Module):
    """Times [P] or [R] -> `count` vectors for each, [*, count * D]."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, times: Tensor) -> Tensor:
        return self.linear(self.activation(self.embedder(times)))


class LTX2Block(Block[LTX2Cond]):
    """Each part attends to itself and to its text, then each to the other, then an MLP each."""

    def __init__(self, config: LTX2Config) -> None:
        super().__init__()
        heads, split = config.num_attention_heads, config.rope_type == "split"
        wide, narrow = config.dim, config.sound_dim
        self.video, self.sound = LTX2Stream(wide, heads, split), LTX2Stream(narrow, heads, split)
        self.to_video = TurningAttention(wide, narrow, narrow, heads, "sound to video", EPS, split)
        self.to_sound = TurningAttention(narrow, wide, narrow, heads, "video to sound", EPS, split)

    def forward(self, hidden: Tensor, cond: LTX2Cond) -> Tensor:
        video, sound = cond.split(hidden, self.sound.dim)
        video, sound = self.video.attend(video, cond.video), self.sound.attend(sound, cond.sound)
        asking, telling, gate = self.video.meet(video, cond.video, cond.together)
        told, asked, sound_gate = self.sound.meet(sound, cond.sound, cond.together)
        v, s = cond.video, cond.sound
        ropes = v.meeting_rope, s.meeting_rope
        video = video + gate * self.to_video.turning(asking, v.layout, told, s.layout, ropes)
        sound = sound + sound_gate * self.to_sound.turning(asked, s.layout, telling, v.layout, ropes[::-1])
        return cond.join(self.video.finish(video, v), self.sound.finish(sound, s))

    def probe(self, hidden: Tensor, cond: LTX2Cond) -> Tensor:
        """The video as its attention sees it; zeros for the sound, which has no part in the relative change."""
        video, sound = cond.split(hidden, self.sound.dim)
        return cond.join(self.video.enter(video, cond.video), torch.zeros_like(sound))


class LTX2Stream(nn.Module):
    """One half of a block: all that video or sound does by itself."""

    def __init__(self, dim: int, heads: int, split: bool) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.RMSNorm(dim, EPS, elementwise_affine=False)
        self.attention = TurningAttention(dim, dim, dim, heads, "self", EPS, split)
        self.text_attention = WideAttention(dim, dim, dim, heads, "cross", EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.meeting_table = nn.Parameter(torch.zeros(5, dim))

    def enter(self, x: Tensor, cond: PartCond) -> Tensor:
        """Tokens as the attention among them sees them."""
        shift, scale, *_ = self._mods(cond)
        return self.norm(x) * (1 + scale) + shift

    def attend(self, x: Tensor, cond: PartCond) -> Tensor:
        """Tokens after the attention among them and the one to the text."""
        gate, layout = self._mods(cond)[2], cond.layout
        seen = self.enter(x, cond)
        x = x + self.attention.turning(seen, layout, seen, layout, (cond.rope, cond.rope)) * gate
        return x + self.text_attention(self.norm(x), layout, cond.text, cond.text_layout)

    def meet(self, x: Tensor, cond: PartCond, together: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as they are when the video asks the sound, and when the sound asks the video; and the gate of what is
        answered.
        """
        table, layout, normed = self.meeting_table, cond.layout, self.norm(x)
        scale, shift, other_scale, other_shift = layout.expand(table[:4].flatten() + cond.meeting).chunk(4, dim=-1)
        gate = layout.expand((table[4] + cond.gate) * together)
        return normed * (1 + scale) + shift, normed * (1 + other_scale) + other_shift, gate

    def finish(self, x: Tensor, cond: PartCond) -> Tensor:
        """Tokens after the MLP."""
        *_, shift, scale, gate = self._mods(cond)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift) * gate

    def _mods(self, cond: PartCond) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP."""
        return cond.expand(self.scale_shift_table.flatten() + cond.time).chunk(6, dim=-1)
