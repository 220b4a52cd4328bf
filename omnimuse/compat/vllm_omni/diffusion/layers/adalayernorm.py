"""`vllm_omni.diffusion.layers.adalayernorm`.

Letters: B batch, S tokens, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.model_executor.layers.linear import ReplicatedLinear
from omnimuse.compat.vllm.model_executor.layers.quantization.base_config import QuantizationConfig


class AdaLayerNorm(nn.Module):
    """A layer norm that a condition scales and shifts.

    Made with `ada_dim`, it projects the condition [B, ada_dim] itself, and gives the normed tokens. Without, it is
    given shift, scale and gate as [B, 3 D], and gives the gate [B, 1, D], too; or, as published model files have it,
    a scale and a `shift` that broadcast, and gives the normed tokens.
    """

    def __init__(
        self, hidden_size: int, elementwise_affine: bool = False, eps: float = 1e-6, *, ada_dim: int | None = None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps, elementwise_affine)
        self.linear = None if ada_dim is None else nn.Linear(ada_dim, 2 * hidden_size)
        self.silu = nn.SiLU()

    def forward(self, x: Tensor, condition: Tensor, shift: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[B, S, D] -> the same shape."""
        if shift is not None:
            moved: Tensor = self.norm(x) * (1 + condition) + shift
            return moved
        if self.linear is not None:
            scale, shift = self.linear(self.silu(condition)).chunk(2, dim=-1)
            made: Tensor = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
            return made
        shift, scale, gate = condition.chunk(3, dim=-1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], gate[:, None]


class AdaLayerNormZero(nn.Module):
    """A layer norm of x [B, S, D] that a condition [B, D] shifts and scales; with the gate, and the same of the MLP."""

    pieces: ClassVar[int] = 6

    def __init__(
        self, embedding_dim: int, bias: bool = True, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = ReplicatedLinear(
            embedding_dim,
            self.pieces * embedding_dim,
            bias,
            return_bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.linear",
        )
        self.norm = nn.LayerNorm(embedding_dim, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, ...]:
        """The normed tokens, and the other vectors [B, D] in order."""
        shift, scale, *others = self.linear(self.silu(emb)).chunk(self.pieces, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], *others


class AdaLayerNormZeroSingle(AdaLayerNormZero):
    """The same with the gate alone."""

    pieces: ClassVar[int] = 3


class AdaLayerNormContinuous(nn.Module):
    """A layer norm of x [B, S, D] that a condition [B, C] scales and shifts."""

    def __init__(
        self,
        embedding_dim: int,
        conditioning_embedding_dim: int,
        elementwise_affine: bool = False,
        eps: float = 1e-6,
        bias: bool = True,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = ReplicatedLinear(
            conditioning_embedding_dim,
            2 * embedding_dim,
            bias,
            return_bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.linear",
        )
        self.norm = nn.LayerNorm(embedding_dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        """The same shape."""
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        made: Tensor = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        return made


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
