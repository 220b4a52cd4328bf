"""What paints the spectrum of speech: a network of flow matching, told codes and a voice.

The arithmetic is that of transformers' `Qwen2_5OmniToken2WavDiTModel`; `bigvgan.py` makes samples of what it paints.
Frames come in blocks; a frame sees those of its own block, in a few layers those of the block before or behind as well.
Rows of any length are laid end to end.

Letters: R rows, W frames of a block, B blocks of all rows, T frames of a row, M bands, D width, N heads, H head dim, C
what stands beside a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.answering_facts import WAVES
from omnimuse.components.ecapa import Ecapa, EcapaConfig
from omnimuse.components.qwen3_facts import ROPE, rope_theta
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cut
from omnimuse.layers.embedding import waves
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, BlockStack, Memory
from omnimuse.loader.facts import facts_inside, known_of, part, read_facts

FLOW = (WAVES, "dit_config")
WHERE = f"config.json, {', '.join(FLOW)}"
THETA, TIMES, SCALE = 10_000.0, 256, 1000.0
EPS = 1e-6


@dataclass(frozen=True)
class CodesConfig:
    """Of the codes: how many there are, how wide they and a voice are, and how many frames a code has."""

    num_embeds: int = 8193
    emb_dim: int = 512
    enc_emb_dim: int = 192
    repeats: int = 2


@dataclass(frozen=True)
class FlowConfig(EcapaConfig):
    """The facts in that part of config.json; defaults are those of the published code."""

    mel_dim: int = 80
    enc_dim: int = 128
    enc_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    enc_attention_channels: int = 64
    enc_res2net_scale: int = 2
    enc_se_channels: int = 64
    hidden_size: int = 1024
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    head_dim: int = 64
    ff_mult: int = 2
    block_size: int = 24
    look_ahead_layers: tuple[int, ...] = (10,)
    look_backward_layers: tuple[int, ...] = (0, 20)
    codes: CodesConfig = CodesConfig()


@dataclass(frozen=True)
class Flowing:
    """A row: bands of noise becoming speech [T, M], what stands beside them [T, C], and the time []."""

    mel: Tensor
    beside: Tensor
    time: Tensor


@dataclass(frozen=True)
class FlowConditions:
    """What blocks need beside the hidden states: the rows in whole blocks of `width` frames, how many frames are none,
    what is made of the time of each row, [R, D], and by what frames turn, [T, H / 2].
    """

    layout: Layout
    width: int
    empty: tuple[int, ...]
    time: Tensor
    turns: tuple[Tensor, Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def dense(self) -> bool:
        return False

    def select(self, rows: Sequence[int]) -> FlowConditions:
        time = torch.cat([self.time[row : row + 1] for row in rows])
        return FlowConditions(
            self.layout.select(rows), self.width, tuple(self.empty[row] for row in rows), time, self.turns
        )

    def cut(self, part: Cut) -> FlowConditions | None:
        return None  # ranks would have to tell each other of blocks at every border

    def of_blocks(self, per_row: Tensor) -> Tensor:
        """[R, *] -> [B, 1, *]."""
        parts = zip(per_row.split(1), self.layout.lengths, strict=True)
        return torch.cat([row.expand(length // self.width, -1) for row, length in parts])[:, None]

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [B, W, 1, H / 2] each."""
        if "cos" not in self.kept:
            for name, turns in zip(("cos", "sin"), self.turns, strict=True):
                found = torch.cat([turns[:length] for length in self.layout.lengths])
                self.kept[name] = found.view(-1, self.width, 1, turns.shape[1])
        return self.kept["cos"], self.kept["sin"]

    @property
    def there(self) -> Tensor:
        """Which frames are some, bool [B, W]."""
        if "there" not in self.kept:
            parts = zip(self.layout.lengths, self.empty, strict=True)
            frames = [torch.arange(length, device=self.time.device) < length - empty for length, empty in parts]
            self.kept["there"] = torch.cat(frames).view(-1, self.width)
        return self.kept["there"]

    def beside(self, x: Tensor, step: Literal[-1, 1]) -> Tensor:
        """[B, *], of each block what the one before it (-1) or behind it (1) in its row has; zeros where none is."""
        rows = x.split([length // self.width for length in self.layout.lengths])
        none = x.new_zeros(1, *x.shape[1:])
        return torch.cat([torch.cat([none, row[:-1]] if step < 0 else [row[1:], none]) for row in rows])


class MelFlow(Network):
    """Bands of mel on the way from noise to speech -> how they move, [T, M]."""

    packing: ClassVar[Literal["stack", "pad", "varlen", "tokens"]] = "varlen"

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config, c, width = config, config, config.hidden_size
        beside = c.enc_dim + c.codes.emb_dim + c.codes.enc_emb_dim
        self.time_mlp = nn.Sequential(nn.Linear(TIMES, width), nn.SiLU(), nn.Linear(width, width))
        self.activation = nn.SiLU()
        self.codec_embed = nn.Embedding(c.codes.num_embeds + 1, c.codes.emb_dim)
        self.spk_encoder = Ecapa(c)
        self.proj = nn.Linear(c.mel_dim + beside, width)
        self.blocks = BlockStack(
            FlowBlock(c, back=layer in c.look_backward_layers, ahead=layer in c.look_ahead_layers)
            for layer in range(c.num_hidden_layers)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.proj_out = nn.Linear(width, c.mel_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MelFlow:
        """What the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given, codes = part(part(config, WAVES), "dit_config"), facts_inside(CodesConfig, config, FLOW, {})
        if (theta := rope_theta({"rope_theta": THETA, **{n: given[n] for n in ROPE if n in given}}, WHERE)) != THETA:
            raise ModelError(f"{WHERE}: rope_theta={theta!r} is not supported; only {THETA} is")
        found = read_facts(FlowConfig, {**known_of(given, FlowConfig, ()), "codes": codes}, WHERE, {})
        if not found.fits:
            raise ModelError(f"{WHERE}: channels, kernel sizes and dilations are not as many")
        if found.block_size % codes.repeats:
            why = f"the block_size={found.block_size} is no multiple of repeats={codes.repeats}; use another checkpoint"
            raise ModelError(f"{WHERE}: {why}")
        return cls(found)

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.blocks}

    def told(self, codes: Tensor, voice: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """What stands beside frames, [T, C], for codes, int64 [T / repeats], in a `voice` [V] of which this is a `mel`
        [M, *]; and what does where nothing is told.
        """
        found = []
        for told in (True, False):
            each = self.codec_embed(codes if told else torch.zeros_like(codes))
            each = each.repeat_interleave(self.config.codes.repeats, dim=0)  # [T, *]
            heard = self.spk_encoder(mel if told else torch.zeros_like(mel))
            own = (heard, each, voice if told else torch.zeros_like(voice))
            found.append(torch.cat([x.expand(len(each), -1) for x in own], dim=-1))
        return found[0], found[1]

    def forward(self, rows: Sequence[Flowing], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        c, lengths = self.config, [len(row.mel) for row in rows]
        empty = tuple(-length % c.block_size for length in lengths)
        given = [torch.cat([row.mel, row.beside], dim=-1) for row in rows]
        padded = [F.pad(each, (0, 0, 0, more)) for each, more in zip(given, empty, strict=True)]
        layout = Layout(tuple(map(len, padded)))
        time = self.activation(self.time_mlp(waves(SCALE * torch.stack([row.time for row in rows]), TIMES)))
        turns = self._turns(max(layout.lengths), time.device)
        cond = FlowConditions(layout, c.block_size, empty, time, turns)
        hidden = self.blocks(self.proj(layout.pack(padded)), cond, memories)
        scale, shift = cond.of_blocks(self.modulation(time)).chunk(2, dim=-1)
        blocks = self.norm(hidden.view(-1, c.block_size, c.hidden_size)) * (1 + scale) + shift
        made = layout.unpack(self.proj_out(blocks).view(*hidden.shape[:2], c.mel_dim))
        return [each[:length] for each, length in zip(made, lengths, strict=True)]

    def _turns(self, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        pairs = self.config.head_dim // 2
        speeds = 1.0 / THETA ** (torch.arange(pairs, device=device).float() / pairs)
        angles = torch.arange(frames, device=device).float()[:, None] * speeds
        return angles.cos(), angles.sin()


class FlowBlock(Block[FlowConditions]):
    """Attention, then an MLP, each on hidden states that are normed, scaled and shifted by the time."""

    mixes_tokens = True

    def __init__(self, config: FlowConfig, *, back: bool, ahead: bool) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.dim, self.back, self.ahead = config.head_dim, back, ahead
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.Linear(inner, width)
        self.ff = nn.Sequential(
            nn.Linear(width, config.ff_mult * width),
            nn.GELU("tanh"),
            nn.Identity(),
            nn.Linear(config.ff_mult * width, width),
        )

    def forward(self, hidden: Tensor, cond: FlowConditions) -> Tensor:
        x = hidden.view(-1, cond.width, hidden.shape[-1])  # [B, W, D]
        shift, scale, gate, shift2, scale2, gate2 = cond.of_blocks(self.modulation(cond.time)).chunk(6, dim=-1)
        x = x + gate * self._attend(self.norm(x) * (1 + scale) + shift, cond)
        x = x + gate2 * self.ff(self.norm(x) * (1 + scale2) + shift2)
        return x.view_as(hidden)

    def _attend(self, x: Tensor, cond: FlowConditions) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.dim)) for proj in (self.to_q, self.to_k, self.to_v))
        q, k, there = _turned(q, *cond.places), _turned(k, *cond.places), cond.there
        near: tuple[Literal[-1, 1], ...] = (*((-1,) if self.back else ()), *((1,) if self.ahead else ()))
        keys, values, seen = ([own, *(cond.beside(own, step) for step in near)] for own in (k, v, there))
        q, k, v = (part.transpose(1, 2) for part in (q, torch.cat(keys, dim=1), torch.cat(values, dim=1)))
        mask = torch.cat(seen, dim=1)[:, None, None]  # [B, 1, 1, W or more]
        return self.to_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [B, W, N, H]; of the first alone, each pair of neighbours is turned by its angle, as the network learnt."""
    first, others = x.split([1, x.shape[2] - 1], dim=2)
    even, odd = first[..., 0::2], first[..., 1::2]
    return torch.cat([torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1), others], dim=2)
