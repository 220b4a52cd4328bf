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
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.spans import Runs
from omnimuse.components.two_widths import BothParts
from omnimuse.components.wide_attention import PLAN, TurningAttention, WideAttention
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Columns, Cutting, Rows
from omnimuse.layers.embedding import TimestepVectors
from omnimuse.layers.network import Network
from omnimuse.layers.rotary import middles, shared_rotary
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
    ropes: tuple[Tensor, Tensor]  # [S, 2, */2, 2], float32, for attention within the part, and to the other
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
        spans = tuple(length for length in (first, len(self.video.ropes[0]) - first) if length)
        return replace(self, video=replace(self.video, spans=spans, still=True))

    @property
    def text_tokens(self) -> int:
        """How many tokens there are beside those of the video."""
        return len(self.sound.ropes[0])


@dataclass(frozen=True)
class LTX2Inputs:
    """One row: noisy latents of the video, then of the sound [c f h w + a l m], the time (0 to 1000) and the rest."""

    latents: Tensor
    t: Tensor
    static: LTX2Static


@dataclass(frozen=True)
class PartCond:
    """What blocks need of one of video and sound."""

    runs: Runs  # tokens that share a time, for every row
    text_layout: Layout
    text: Tensor  # packed by text_layout
    ropes: tuple[Tensor, Tensor]  # packed
    time: Tensor  # [P, 6 D]
    meeting: Tensor  # [R, 4 D]
    gate: Tensor  # [R, D]
    together: Tensor  # [R, 1]

    @property
    def layout(self) -> Layout:
        return self.runs.layout

    @property
    def dense(self) -> bool:
        return self.layout.dense and self.text_layout.dense

    def select(self, rows: Sequence[int]) -> PartCond:
        text = self.text_layout.take(self.text, rows)
        ropes = self.layout.take(self.ropes[0], rows), self.layout.take(self.ropes[1], rows)
        vectors = (torch.stack([x[row] for row in rows]) for x in (self.meeting, self.gate, self.together))
        runs, texts = self.runs.select(rows), self.text_layout.select(rows)
        return PartCond(runs, texts, text, ropes, self.runs.take(self.time, rows), *vectors)


class LTX2Transformer(Network):
    """Predicts the velocity from video and sound to noise: one tensor [c f h w + a l m] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"
    parted: ClassVar[bool] = False

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
        rate, device = config.audio_sampling_rate / config.audio_hop_length, weight.device
        when = middles(video[1], SPAN, LONGEST, device, fps)
        where = (middles(length, SIDE, WIDEST, device) for length in video[2:])
        places = torch.cartesian_prod(when, *where)  # [f h w, 3]
        moments = middles(sound[1], SOUND_SPAN, LONGEST, device, rate)[:, None]
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
        together = torch.stack([row.static.together for row in rows])  # [R, 1]
        video = self.video.condition(seeing, times, now, together)
        sound = self.sound.condition(hearing, now, now, together)
        cond = BothParts.of(video, sound, self.config.dim // self.config.sound_dim)
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


class LTX2Part(nn.Module):
    """What stands around the blocks for one of video and sound: its texts, its times, its way in and out."""

    def __init__(self, dim: int, channels: int, text_width: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj_in = nn.Linear(channels, dim)
        self.caption = nn.Sequential(nn.Linear(text_width, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.clock, self.meeting_clock, self.gate_clock = (TimestepVectors(dim, count) for count in (6, 4, 1))
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, dim))
        self.proj_out = nn.Linear(dim, channels)

    def prepare(
        self, text: Tensor, size: Sequence[int], places: Tensor, meeting_places: Tensor, meeting_dim: int
    ) -> PartStatic:
        """What all steps share, of tokens at these places."""
        read = self.caption(text.to(self.proj_in.weight))
        ropes = shared_rotary(places, self.dim, THETA), shared_rotary(meeting_places, meeting_dim, THETA)
        return PartStatic(tuple(size), (len(ropes[0]),), read, ropes)

    def condition(self, parts: Sequence[PartStatic], times: Tensor, now: Tensor, together: Tensor) -> PartCond:
        """What the blocks need at times [P] of the spans, and [R] of the rows, by which the parts meet."""
        layout, texts = Layout(tuple(len(p.ropes[0]) for p in parts)), Layout(tuple(len(p.text) for p in parts))
        text = texts.pack([part.text for part in parts])
        ropes = layout.pack([part.ropes[0] for part in parts]), layout.pack([part.ropes[1] for part in parts])
        mods = self.clock(times), self.meeting_clock(now), self.gate_clock(now)
        return PartCond(Runs(layout, tuple(part.spans for part in parts)), texts, text, ropes, *mods, together)

    def leave(self, x: Tensor, cond: PartCond, times: Tensor) -> list[Tensor]:
        """Packed tokens -> their numbers, [S, channels] each."""
        mods = (self.scale_shift_table + self.clock.embedder(times)[:, None]).unbind(1)  # [P, D] each
        shift, scale = map(cond.runs.expand, mods)
        return cond.layout.unpack(self.proj_out(self.norm(x) * (1 + scale) + shift))


class LTX2Block(Block[BothParts[PartCond]]):
    """Each part attends to itself and to its text, then each to the other, then an MLP each."""

    def __init__(self, config: LTX2Config) -> None:
        super().__init__()
        heads, split = config.num_attention_heads, config.rope_type == "split"
        wide, narrow = config.dim, config.sound_dim
        self.video, self.sound = LTX2Stream(wide, heads, split), LTX2Stream(narrow, heads, split)
        self.to_video = TurningAttention(wide, narrow, narrow, heads, "sound to video", EPS, split)
        self.to_sound = TurningAttention(narrow, wide, narrow, heads, "video to sound", EPS, split)

    def forward(self, hidden: Tensor, cond: BothParts[PartCond]) -> Tensor:
        video, sound = cond.split(hidden, self.sound.dim)
        v, s = cond.wide, cond.narrow
        video, sound = self.video.attend(video, v), self.sound.attend(sound, s)
        asking, telling, gate = self.video.meet(video, v)
        told, asked, sound_gate = self.sound.meet(sound, s)
        ropes = v.ropes[1], s.ropes[1]
        video = video + gate * self.to_video.turning(asking, v.layout, told, s.layout, ropes)
        sound = sound + sound_gate * self.to_sound.turning(asked, s.layout, telling, v.layout, ropes[::-1])
        return cond.join(self.video.finish(video, v), self.sound.finish(sound, s))

    def probe(self, hidden: Tensor, cond: BothParts[PartCond]) -> Tensor:
        """The video as its attention sees it; zeros for the sound, which has no part in the relative change."""
        video, sound = cond.split(hidden, self.sound.dim)
        return cond.join(self.video.enter(video, cond.wide), torch.zeros_like(sound))


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
        x = x + self.attention.turning(seen, layout, seen, layout, (cond.ropes[0], cond.ropes[0])) * gate
        return x + self.text_attention(self.norm(x), layout, cond.text, cond.text_layout)

    def meet(self, x: Tensor, cond: PartCond) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as they are when the video asks the sound, and when the sound asks the video; and the gate of what is
        answered.
        """
        table, layout, normed = self.meeting_table, cond.layout, self.norm(x)
        scale, shift, other_scale, other_shift = layout.expand(table[:4].flatten() + cond.meeting).chunk(4, dim=-1)
        gate = layout.expand((table[4] + cond.gate) * cond.together)
        return normed * (1 + scale) + shift, normed * (1 + other_scale) + other_shift, gate

    def finish(self, x: Tensor, cond: PartCond) -> Tensor:
        """Tokens after the MLP."""
        *_, shift, scale, gate = self._mods(cond)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift) * gate

    def _mods(self, cond: PartCond) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP."""
        return cond.runs.expand(self.scale_shift_table.flatten() + cond.time).chunk(6, dim=-1)
