"""Adapters in compiled blocks: one code for all sets of them, and what blocks make as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.stack import Block, BlockStack, PlainRunner
from omnimuse.lora.adapter import Adapter, Product, Worn
from omnimuse.lora.adapters import adapt
from omnimuse.lora.linear import Adapted, Rack
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.quant.schemes import SCHEMES
from tests.compiling import Counter
from tests.toy_stack import WIDTH, ToyCond


class Mix(Block[ToyCond]):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, cond: ToyCond) -> Tensor:
        return hidden + self.linear(hidden + cond.layout.expand(cond.shift))

    def probe(self, hidden: Tensor, cond: ToyCond) -> Tensor:
        return hidden


def site(block: int) -> tuple[str, str]:
    return "net", f"{block}.linear"


def adapter(name: str, rank: int, *blocks: int, start: int = 0, bias: Tensor | None = None) -> Adapter:
    """Products of that rank for the layers of some blocks, for outputs from `start` on."""
    sizes = (rank, WIDTH), (WIDTH - start, rank)
    return Adapter(name, {site(n): (Product(*(torch.randn(*size) for size in sizes), start, bias),) for n in blocks})


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_one_code_is_made_for_all_sets_of_adapters_and_another_for_none() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    stack, rack, compiler = BlockStack([Mix(), Mix()]).requires_grad_(False), Rack(), Counter()
    for block in range(2):
        adapt({"net": stack}, site(block), rack)
        layer = stack.get_submodule(site(block)[1])
        assert isinstance(layer, Adapted)
        rack.compiled[site(block)] = layer
    compiled = CompiledRunner(stack.blocks(), compiler, within=rack.joining)
    hidden, cond = torch.randn(2, 5, WIDTH), ToyCond(Layout((5, 5)), torch.randn(2, WIDTH))
    one, two = adapter("one", 1, 0, 1), adapter("two", 4, 1, start=3, bias=torch.randn(WIDTH - 3))
    away = Worn(adapter("for layers of another process", 1), 1.0)
    both = Worn(one, 0.5), Worn(two, -1.0)
    sets = ((), (Worn(two, 0.8),), (Worn(one, 1.0),), both, (away, Worn(two, 0.3)), (away,))
    counts = list[int]()
    for worn in sets:
        rack.worn = worn
        found, expected = compiled(stack.blocks(), hidden, cond), PlainRunner()(stack.blocks(), hidden, cond)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert rack.worn == worn and all(layer.peg.joined is None for layer in rack.compiled.values())
        counts.append(compiler.graphs)
    assert counts[:2] == [1, 2], "one for all blocks, and one more for all that wear something"
    assert counts[1:] == [counts[1]] * 5


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_layer_wears_is_joined_in_its_own_format_whatever_other_layers_compute_in(packed: bool) -> None:
    """As in Wan, whose time embedding stays in float32."""
    layer: nn.Module = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)
    if packed:
        layer = QuantizedLinear(nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16), SCHEMES["int8"], torch.bfloat16)
    own = Product(torch.ones(1, WIDTH, dtype=torch.bfloat16), torch.ones(WIDTH, 1, dtype=torch.bfloat16))
    other = Product(torch.ones(1, 3), torch.ones(5, 1))
    worn = Worn(Adapter("both", {("net", "time"): (other,), ("net", "mine"): (own,)}), 0.5)
    joined = Adapted(layer, ("net", "mine"), Rack()).join([worn])
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16)
    assert torch.equal(joined.added(torch.zeros_like(x), x), torch.full_like(x, 0.5 * WIDTH))
