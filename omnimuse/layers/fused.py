"""The kernels of `layers/kernels.py` in Triton: each reads its tensors once and writes once, in float32 in between.

Only the build pass that chose them imports this file (`worker/kernels.py`); Triton comes with torch for CUDA. A program
has one token, so what it computes does not depend on company.

Letters: B batch, S tokens, D width, N heads, H head dim, P spans of equally many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from omnimuse.layers.kernels import HeadNorm

Rows = tuple[Tensor, int, int, int]
"""A tensor of tokens: strides of batch and token, and how many tokens a batch has; the width lies end to end."""
Spans = tuple[Tensor, int, int]
"""One vector a span: the stride of spans, and how many tokens each has."""
Extras = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""What may follow a norm: scale, shift, then what it is added to and by which gate."""


COLUMNS = 1024
"""Of a token, that one program computes where no sum goes over all of them."""


class Fused:
    """The kernels, on whatever device Triton has. `through` may stand between a kernel and its launch."""

    name = "triton"

    def __init__(self, through: Callable[[Any], Any] = lambda kernel: kernel) -> None:
        self._norm, self._add, self._turn = (through(kernel) for kernel in (_norm, _add, _turn))
        self._gated, self._beside = through(_gated), through(_beside)

    def modulated_norm(self, x: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        return self._launch_norm(out, x, None, (scale, shift, None, None), eps, centred=True)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None) -> Tensor:
        half = weight.dtype in (torch.float16, torch.bfloat16)
        dtype = weight.dtype if half else torch.promote_types(torch.float32, weight.dtype)
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        return self._launch_norm(out, x, weight, (scale, None, None, None), eps, centred=False)

    def add_rms_norm(self, residual: Tensor, gate: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
        return self._launch_norm(out, x, weight, (None, None, residual, gate), eps, centred=False)

    def add(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
        block = triton.next_power_of_2(out.shape[-1])
        how = (out.shape[-1], block)
        self._add[(out.numel() // out.shape[-1],)](
            out, _rows(residual), _rows(x), _spans(gate, out), how, num_warps=_warps(block)
        )
        return out

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        width = out.shape[-1]
        grid = (out.numel() // width, triton.cdiv(width, COLUMNS))
        self._gated[grid](out, _rows(gate), _rows(up), (width, COLUMNS), num_warps=4)
        return out

    def beside(self, attended: Tensor, mlp: Tensor, activation: nn.Module) -> Tensor:
        if not (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
            return torch.cat([attended, activation(mlp)], dim=-1)
        left, right = attended.shape[-1], mlp.shape[-1]
        out = torch.empty((*attended.shape[:-1], left + right), dtype=attended.dtype, device=attended.device)
        grid = (out.numel() // out.shape[-1], triton.cdiv(left + right, COLUMNS))
        self._beside[grid](out, _rows(attended), _rows(mlp), (left, left + right, COLUMNS), num_warps=4)
        return out

    def turn(self, qk: Tensor, rope: Tensor) -> Tensor:
        return self._launch_turn(qk, None, rope)

    def norm_and_turn(self, qk: Tensor, norm: HeadNorm, rope: Tensor | None) -> Tensor:
        return self._launch_turn(qk, norm, rope)

    def _launch_norm(
        self, out: Tensor, x: Tensor, weight: Tensor | None, extras: Extras, eps: float, *, centred: bool
    ) -> Tensor:
        scale, shift, residual, gate = extras
        width = x.shape[-1]
        block = triton.next_power_of_2(width)
        added = None if residual is None or gate is None else (_rows(residual), _spans(gate, out))
        modulation = tuple(None if part is None else _spans(part, out) for part in (scale, shift))
        self._norm[(out.numel() // width,)](
            out, _rows(x), weight, modulation, added, (width, block, centred), eps, num_warps=_warps(block)
        )
        return out

    def _launch_turn(self, qk: Tensor, norm: HeadNorm | None, rope: Tensor | None) -> Tensor:
        batch, tokens, _, heads, head_dim = qk.shape
        if qk.stride(-1) != 1:
            qk = qk.contiguous()
        out = torch.empty(qk.shape, dtype=qk.dtype, device=qk.device)
        turns = None
        if rope is not None:
            if not rope[0].is_contiguous():
                rope = rope.contiguous()
            turns = rope, rope.stride(0) if len(rope) == batch else 0  # of one table for all rows, no copies
        once = norm is not None and norm.rounds_once
        how = (heads, triton.next_power_of_2(heads), head_dim, triton.next_power_of_2(head_dim), once)
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        strides = qk.stride()[:4]
        self._turn[(batch * tokens, 2)](out, (qk, tokens, *strides), weight, turns, how, eps)
        return out


def _rows(x: Tensor) -> Rows:
    if x.ndim != 3:
        x = x.reshape(1, -1, x.shape[-1])
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x, x.stride(0), x.stride(1), x.shape[1]


def _spans(vectors: Tensor, out: Tensor) -> Spans:
    rows, count = out.numel() // out.shape[-1], vectors.numel() // vectors.shape[-1]
    if rows % count or vectors.shape[-1] != out.shape[-1]:
        raise ValueError(f"{tuple(vectors.shape)} cannot be shared out among the tokens of {tuple(out.shape)}")
    vectors = vectors.reshape(-1, vectors.shape[-1])
    if vectors.stride(-1) != 1:
        vectors = vectors.contiguous()
    return vectors, vectors.stride(0), rows // count


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


@triton.jit
def _place(rows, row):
    """Where the token `row` of `rows` begins."""
    return (row // rows[3]) * rows[1] + (row % rows[3]) * rows[2]


@triton.jit
def _norm(out, x, weight, modulation, added, how: tl.constexpr, eps):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, how[1])
    inside = column < how[0]
    value = tl.load(x[0] + _place(x, row) + column, mask=inside, other=0.0).to(tl.float32)
    if how[2]:
        value = tl.where(inside, value - tl.sum(value, 0) / how[0], 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / how[0] + eps)
    if weight is not None:
        value = value.to(out.dtype.element_ty).to(tl.float32)
        value = value * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if modulation[0] is not None:
        scale = modulation[0][0] + row // modulation[0][2] * modulation[0][1]
        value = value * (1 + tl.load(scale + column, mask=inside, other=0.0).to(tl.float32))
    if modulation[1] is not None:
        shift = modulation[1][0] + row // modulation[1][2] * modulation[1][1]
        value = value + tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    if added is not None:
        gate = added[1][0] + row // added[1][2] * added[1][1]
        residual = added[0][0] + _place(added[0], row)
        value = value * tl.load(gate + column, mask=inside, other=0.0).to(tl.float32)
        value = value + tl.load(residual + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * how[0] + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add(out, residual, x, gate, how: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, how[1])
    inside = column < how[0]
    value = tl.load(x[0] + _place(x, row) + column, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(gate[0] + row // gate[2] * gate[1] + column, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(residual[0] + _place(residual, row) + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * how[0] + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(out, x, weight, turns, how: tl.constexpr, eps):
    """Queries (0) or keys (1) of one token: all heads by their numbers, [N, H]."""
    token, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads, column = tl.arange(0, how[1])[:, None], tl.arange(0, how[3])[None, :]
    inside = (heads < how[0]) & (column < how[2])
    start = (token // x[1]) * x[2] + (token % x[1]) * x[3] + which * x[4]
    value = tl.load(x[0] + start + heads * x[5] + column, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        value = value * tl.rsqrt(tl.sum(value * value, 1) / how[2] + eps)[:, None]
        if not how[4]:
            value = value.to(out.dtype.element_ty).to(tl.float32)
        factor = tl.load(weight + which * how[2] + column, mask=column < how[2], other=0.0).to(tl.float32)
        value = (value * factor).to(out.dtype.element_ty).to(tl.float32)
    if turns is not None:
        pair = tl.arange(0, how[3] // 2)[None, :]
        table = turns[0] + (token // x[1]) * turns[1] + (token % x[1]) * (2 * how[2]) + 2 * pair
        cosine = tl.load(table, mask=pair < how[2] // 2, other=0.0)
        sine = tl.load(table + how[2] + 1, mask=pair < how[2] // 2, other=0.0)
        left, right = tl.split(tl.reshape(value, (how[1], how[3] // 2, 2)))
        turned = tl.join(left * cosine - right * sine, left * sine + right * cosine)
        value = tl.reshape(turned, (how[1], how[3]))
    place = (token * 2 + which) * (how[0] * how[2]) + heads * how[2] + column
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)), where nothing overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def _gated(out, gate, up, how: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * how[1] + tl.arange(0, how[1])
    inside = column < how[0]
    value = tl.load(gate[0] + _place(gate, row) + column, mask=inside, other=0.0).to(tl.float32)
    value = (value * _sigmoid(value)).to(out.dtype.element_ty).to(tl.float32)
    value *= tl.load(up[0] + _place(up, row) + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * how[0] + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _beside(out, attended, mlp, how: tl.constexpr):
    """GELU by tanh: (1 + tanh(z)) / 2 is sigmoid(2 z)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * how[2] + tl.arange(0, how[2])
    first, inside = column < how[0], column < how[1]
    kept = tl.load(attended[0] + _place(attended, row) + column, mask=first, other=0.0)
    x = tl.load(mlp[0] + _place(mlp, row) + column - how[0], mask=inside & (column >= how[0]), other=0.0).to(tl.float32)
    z = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    value = tl.where(first, kept.to(tl.float32), x * _sigmoid(2 * z))
    tl.store(out + row * how[1] + column, value.to(out.dtype.element_ty), mask=inside)
