"""`vllm.model_executor.layers.linear`: linear layers that ranks can share out, each with its part of the weights.

Each is a linear layer of torch, so that whatever works on those works on these. A parameter knows how a tensor of a
checkpoint is put into it (`weight_loader`), which cuts out this rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import axis
from omnimuse.compat.vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.core.errors import ModelError
from omnimuse.lora.linear import Peg
from omnimuse.parallel.collectives import gathered, summed
from omnimuse.parallel.mesh import TENSOR, Axis

Out = Tensor | tuple[Tensor, Tensor | None]


class LayerOptions(TypedDict, total=False):
    """What every layer may be told besides."""

    skip_bias_add: bool
    params_dtype: torch.dtype | None
    quant_config: QuantizationConfig | None
    prefix: str
    return_bias: bool
    disable_tp: bool


class LinearBase(nn.Linear):
    """What all have: the output alone, or with the bias that is still to be added (`skip_bias_add`).

    `return_bias` false gives the output alone. `quant_config` is None: weights are quantized by our own passes, which
    put what multiplies by them into `packed` and leave no `weight`. With `disable_tp` every rank has all of it. What
    hangs on its `peg` is added to the product.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        **options: Unpack[LayerOptions],
    ) -> None:
        if (quantized := options.get("quant_config")) is not None:
            raise ModelError(f"quant_config={quantized!r} is not taken; weights are quantized by the build")
        super().__init__(input_size, output_size, bias, dtype=options.get("params_dtype"))
        self.skip_bias_add = options.get("skip_bias_add", False)
        self.return_bias = options.get("return_bias", True)
        self.prefix = options.get("prefix", "")
        self.packed: nn.Module | None = None
        self.peg: Peg | None = None
        for parameter in self.parameters():
            parameter.weight_loader = self.weight_loader  # type: ignore[attr-defined]

    @property
    def input_size(self) -> int:
        """How many numbers go in, here."""
        return self.in_features

    @property
    def output_size(self) -> int:
        """How many numbers come out, here."""
        return self.out_features

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor) -> None:
        """Put a tensor of a checkpoint into `param`."""
        default_weight_loader(param, loaded_weight)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [*, K] times the weights, and `bias` added."""
        if self.packed is None:
            out = F.linear(x, self.weight, bias)
        else:
            out = self.packed(x)
            out = out if bias is None else out + bias
        if self.peg is not None:
            self.peg.add(out, x, bias=self.first)
        return out

    @property
    def first(self) -> bool:
        """Whether this rank adds what is added once, however many products are added up."""
        return True

    def given(self, out: Tensor) -> Out:
        """What `forward` returns, where the bias has been added."""
        if not self.return_bias:
            return out
        return out, (self.bias if self.skip_bias_add else None)

    @property
    def added(self) -> Tensor | None:
        """The bias, if it is added here."""
        return None if self.skip_bias_add else self.bias


class ReplicatedLinear(LinearBase):
    """Every rank has all of it."""

    def forward(self, x: Tensor) -> Out:  # type: ignore[override]
        return self.given(self.product(x, self.added))


class ColumnParallelLinear(LinearBase):
    """Every rank computes a part of the output, in order; with `gather_output` it is given the rest."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = False,
        output_sizes: Sequence[int] | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        ranks = tensor_axis(options)
        parts = [share(size, ranks, options) for size in output_sizes or (output_size,)]
        super().__init__(input_size, sum(parts), bias, **options)
        self.ranks = ranks
        self.parts = parts
        self.gather_output = gather_output

    @property
    def tp_size(self) -> int:
        """How many ranks share it."""
        return self.ranks.size

    def forward(self, x: Tensor) -> Out:  # type: ignore[override]
        out = self.product(x, self.added)
        if self.gather_output and self.ranks.size > 1:
            counts = [self.out_features] * self.ranks.size
            out = torch.cat(gathered(self.ranks, out.movedim(-1, 0), counts)).movedim(0, -1)
        return self.given(out)

    def weight_loader(
        self, param: nn.Parameter, loaded_weight: Tensor, loaded_shard_id: int | str | None = None
    ) -> None:
        """All of a tensor, or the piece `loaded_shard_id` of those that the output is made of."""
        pieces = range(len(self.parts)) if loaded_shard_id is None else [self.place(loaded_shard_id)]
        at = 0
        for piece in pieces:
            size = self.parts[piece]
            whole = size * self.copies(piece)
            if loaded_weight.shape[0] < at + whole:
                break
            own = loaded_weight[at : at + whole].narrow(0, self.index(piece) * size, size)
            default_weight_loader(param.data.narrow(0, sum(self.parts[:piece]), size), own)
            at += whole
        if at != loaded_weight.shape[0]:
            raise ModelError(
                f"a tensor of {loaded_weight.shape[0]} rows does not fit {self.prefix or type(self).__name__}, whose "
                f"pieces have {[part * self.copies(at) for at, part in enumerate(self.parts)]}"
            )

    def place(self, shard: int | str) -> int:
        """Which piece is called so."""
        return int(shard)

    def copies(self, piece: int) -> int:
        """On how many ranks different parts of that piece are."""
        return self.ranks.size

    def index(self, piece: int) -> int:
        """Which of the parts of that piece this rank has."""
        return self.ranks.index


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several such layers over one input; a checkpoint has them one by one."""

    def __init__(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        bias: bool = True,
        gather_output: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(input_size, sum(output_sizes), bias, gather_output, output_sizes, **options)
        self.output_sizes = list(output_sizes)


class QKVParallelLinear(ColumnParallelLinear):
    """Queries, keys and values in one layer: this rank's `num_heads` of queries, and `num_kv_heads` of the others.

    With more ranks than heads of keys, several ranks have the same ones. Written without heads, as
    `QKVParallelLinear(width, 3 * width)`, it is one head of the whole width.
    """

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int | None = None,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        **options: Unpack[LayerOptions],
    ) -> None:
        if total_num_heads is None:
            if head_size != 3 * hidden_size:
                raise ValueError(f"head_size={head_size} without total_num_heads: say how many heads there are")
            head_size, total_num_heads = hidden_size, 1
        ranks = tensor_axis(options)
        keys = total_num_kv_heads or total_num_heads
        heads, key_heads = share(total_num_heads, ranks, options), share(max(keys, ranks.size), ranks, options)
        sizes = [total_num_heads * head_size, *[key_heads * ranks.size * head_size] * 2]
        super().__init__(hidden_size, sum(sizes), bias, output_sizes=sizes, **options)
        self.head_size = head_size
        self.total_num_heads, self.total_num_kv_heads = total_num_heads, keys
        self.num_heads, self.num_kv_heads = heads, key_heads
        self.shared = max(1, ranks.size // keys)

    def place(self, shard: int | str) -> int:
        return "qkv".index(shard) if isinstance(shard, str) else shard

    def copies(self, piece: int) -> int:
        return self.ranks.size if piece == 0 else self.ranks.size // self.shared

    def index(self, piece: int) -> int:
        return self.ranks.index if piece == 0 else self.ranks.index // self.shared


class RowParallelLinear(LinearBase):
    """Every rank has a part of the input; the outputs of all are added up, then the bias."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = True,
        reduce_results: bool = True,
        **options: Unpack[LayerOptions],
    ) -> None:
        ranks = tensor_axis(options)
        super().__init__(share(input_size, ranks, options), output_size, bias, **options)
        self.ranks = ranks
        self.input_is_parallel = input_is_parallel
        self.reduce_results = reduce_results

    @property
    def tp_size(self) -> int:
        """How many ranks share it."""
        return self.ranks.size

    @property
    def first(self) -> bool:
        return self.ranks.index == 0

    def forward(self, x: Tensor) -> Out:  # type: ignore[override]
        if self.ranks.size == 1:
            return self.given(self.product(x, self.added))
        if not self.input_is_parallel:
            x = x.narrow(-1, self.ranks.index * self.in_features, self.in_features)
        out = self.product(x, None)
        out = summed(self.ranks, out) if self.reduce_results else out
        return self.given(out if self.added is None else out + self.added)

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor) -> None:
        if loaded_weight.ndim == 2:
            loaded_weight = loaded_weight.narrow(1, self.ranks.index * self.in_features, self.in_features)
        default_weight_loader(param, loaded_weight)


def tensor_axis(options: LayerOptions) -> Axis:
    """The ranks that share weights; this one alone where a layer wants none of it."""
    return Axis() if options.get("disable_tp", False) else axis(TENSOR, "a linear layer")


def share(count: int, ranks: Axis, options: LayerOptions) -> int:
    """This rank's part of `count`; ModelError where ranks cannot have equal ones."""
    if count % ranks.size:
        name = options.get("prefix") or "a layer"
        raise ModelError(
            f"{name} has {count} to share out, which {ranks.size} ranks cannot do evenly, as the contract wants it; "
            "use a tensor_parallel_size that divides it"
        )
    return count // ranks.size


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
