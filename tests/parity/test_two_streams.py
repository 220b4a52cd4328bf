"""Blocks with two streams and with one, with gated MLPs, against diffusers' own (those without are FLUX.1's)."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_ovis_image import (
    OvisImageSingleTransformerBlock,
    OvisImageTransformerBlock,
)
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.two_stream_names import RULES
from omnimuse.components.two_streams import Blocks, DoubleBlock, SingleBlock, TwoStreamCond
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from tests.checkpoints import parts
from tests.drawn import draw

DIM, HEADS, TEXT, IMAGE = 32, 2, 5, 12
GATED = Blocks(DIM, HEADS, double=1, single=1, gated="second")


def theirs(block: nn.Module) -> nn.Module:
    randomise(block, 0, "block", DtypePolicy(torch.float32), "cpu")
    return block.eval().requires_grad_(False)


def filled(ours: nn.Module, weights: dict[str, Tensor], name: str) -> nn.Module:
    """Our block with the weights of theirs, which is the first of its list in a network."""
    plain, single = "transformer_blocks.0", "single_transformer_blocks.0"
    stored = {f"{plain if name == 'double_blocks' else single}.{key}": value for key, value in weights.items()}
    prefix = f"stack.{name}.0."
    ours.load_state_dict({key.removeprefix(prefix): value for key, value in parts.translated(stored, RULES).items()})
    return ours.eval().requires_grad_(False)


def case(rows: int) -> tuple[TwoStreamCond, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Conditions, text [R, S, D], image [R, S, D], and the rotary table as diffusers has it."""
    positions = torch.arange(TEXT + IMAGE)[:, None].expand(-1, 3)
    table = rotary_table(positions, (4, 6, 6), 10_000.0, exact=True)  # [S, 2, H/2, 2]
    text, image = Layout((TEXT,) * rows), Layout((IMAGE,) * rows)
    both = Layout((TEXT + IMAGE,) * rows)
    vector = draw(3, rows, DIM)
    cond = TwoStreamCond(both, text, image, both.pack([table] * rows), torch.nn.functional.silu(vector))
    cos, sin = (table[:, i, :, i].repeat_interleave(2, dim=-1) for i in (0, 1))  # [S, H]
    return cond, draw(1, rows, TEXT, DIM), draw(2, rows, IMAGE, DIM), (cos, sin)


def test_gated_blocks_with_two_streams_equal_the_references() -> None:
    reference = theirs(OvisImageTransformerBlock(DIM, HEADS, DIM // HEADS))
    block = filled(DoubleBlock(GATED), reference.state_dict(), "double_blocks")
    cond, text, image, rope = case(2)
    expected = reference(image, text, draw(3, 2, DIM), rope)
    for found, wanted in zip(cond.split(block(cond.join(text, image), cond)), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_gated_blocks_with_one_stream_equal_the_references() -> None:
    reference = theirs(OvisImageSingleTransformerBlock(DIM, HEADS, DIM // HEADS))
    block = filled(SingleBlock(GATED), reference.state_dict(), "single_blocks")
    cond, text, image, rope = case(2)
    expected = reference(image, text, draw(3, 2, DIM), rope)
    for found, wanted in zip(cond.split(block(cond.join(text, image), cond)), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
