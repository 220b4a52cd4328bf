"""`vllm_omni.diffusion.layers.adalayernorm`.

Letters: B batch, S tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name


class AdaLayerNorm(nn.Module):
    """A layer norm that a condition scales and shifts.

    Made with `ada_dim`, it projects the condition [B, ada_dim] itself, and gives the normed tokens. Without, it is
    given shift, scale and gate as [B, 3 D], and gives the gate [B, 1, D], too.
    """

    def __init__(
        self, hidden_size: int, elementwise_affine: bool = False, eps: float = 1e-6, *, ada_dim: int | None = None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps, elementwise_affine)
        self.linear = None if ada_dim is None else nn.Linear(ada_dim, 2 * hidden_size)
        self.silu = nn.SiLU()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, S, D] -> the same shape."""
        if self.linear is not None:
            scale, shift = self.linear(self.silu(condition)).chunk(2, dim=-1)
            made: Tensor = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
            return made
        shift, scale, gate = condition.chunk(3, dim=-1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], gate[:, None]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
