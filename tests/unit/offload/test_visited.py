"""Blocks of a library's networks come in one at a time, and the library notices nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from omnimuse.loader.tensors import place_everywhere, stored_tensors
from omnimuse.offload.parcels import Away
from omnimuse.offload.stores import FileStore
from omnimuse.offload.visited import block_lists, visit

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2))


def clip() -> nn.Module:
    return CLIPTextModel(CLIPTextConfig(**SIZES, max_position_embeddings=16))


def qwen3() -> nn.Module:
    return Qwen3Model(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8))


def away(module: nn.Module) -> Away:
    """Have its blocks wait in a file, as a build does, with the weights that it has now."""
    weights = {name: tensor.clone() for name, (tensor, _) in stored_tensors(module).items()}
    for tensor, names in stored_tensors(module).values():
        place_everywhere(module, names, torch.empty_like(tensor, device="meta"))
    lists = block_lists(module)
    blocks = [block for each in lists for block in each]
    home = Away(module, stored_tensors(module), torch.device("cpu"), FileStore(), blocks)
    for name, tensor in weights.items():
        home.space(name, tensor).copy_(tensor)
    home.seal()
    for each in lists:
        visit(each, home.blocks)
    home.rest.enter()
    return home


@pytest.mark.parametrize("make", [t5, clip, qwen3])
def test_what_a_library_computes_is_the_same_while_one_block_at_a_time_is_there(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    ids = torch.arange(2, 12)[None]
    expected = module(input_ids=ids, output_hidden_states=True).hidden_states
    names, [blocks] = list(module.state_dict()), block_lists(module)
    kinds, seen = [type(block) for block in blocks], list[list[int]]()
    for block in blocks:
        first = next(part for part in block.modules() if isinstance(part, nn.Linear))
        first.register_forward_pre_hook(lambda *_: seen.append([n for n, each in enumerate(blocks) if there(each)]))
    away(module)
    found = module(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert seen == [[0], [1], [2]]
    assert list(module.state_dict()) == names
    assert all(isinstance(block, kind) for block, kind in zip(blocks, kinds, strict=True))
    assert not any(there(block) for block in blocks)


def there(block: nn.Module) -> bool:
    tensors: list[Tensor] = [tensor for tensor, _ in stored_tensors(block).values()]
    return not any(tensor.is_meta for tensor in tensors)


def test_blocks_with_convolutions_are_left_together() -> None:
    convolutions = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])
    linear = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    mixed, lone = nn.ModuleList([nn.Linear(2, 2), nn.SiLU()]), nn.ModuleList([nn.Linear(2, 2)])
    assert block_lists(nn.ModuleDict({"a": convolutions, "b": linear, "c": mixed, "d": lone})) == [linear]
